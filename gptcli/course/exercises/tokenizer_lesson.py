"""The lesson on byte-pair encoding: compare a learner's tokenizer with the reference."""

from __future__ import annotations

import contextlib
import inspect
import operator
import re
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from gptcli.course.exercises import tokenizer as reference
from gptcli.course.exercises.explainer import Explainer, step_named_in
from gptcli.course.exercises.tokenizer import Pair
from gptcli.course.exercises.tokenizer_mistakes import MISTAKES, STEPS
from gptcli.course.exercises.watch import Watch
from gptcli.course.lesson import CheckFailed, Lesson, Say
from gptcli.course.report import Check
from gptcli.course.sandbox.learner_file import LearnerFile, in_words, place_of
from gptcli.course.sandbox.running import error_of, run_file
from gptcli.course.sandbox.time_limit import TookTooLong, within
from gptcli.errors import GptcliError, nearest
from gptcli.plurals import counted

METHODS = {"train": 1, "encode": 3, "decode": 4, "save": 5, "load": 5}
FUNCTIONS = {1: "train", 3: "encode", 4: "decode", 5: "load"}
BEGIN = "xabcbcy"  # the most frequent pair is neither the first nor the last pair
LIMIT_S, WATCH_LIMIT_S = 2.0, 0.5  # seconds for one call; correct code needs milliseconds
INSTANCE = "an instance method; the exercise asks for a classmethod"
CLASSIC = "aaabdaaabac"
UMLAUTS = "größer, größte, Größe; naïve façade, 你好你好 你们好"
WORDS = (
    "low low low low low lower lower newest newest newest newest newest newest widest widest "
    "widest she sells sea shells by the sea shore"
)
# After training on this text, four rules encode the reversed text differently: by rank, by place,
# by length and by frequency.
MIXED = "ccadbabacdbdababdcbdbabdbbaabbbbccbbbbdcacdbbcaccacacccdcbddbacacdadcdadabbabdcccdaccadabc"
TRAINED = (
    (CLASSIC, 3),
    (WORDS, 30),
    ("aaaaaaabaaaabaaaaaaaaaac", 6),
    (UMLAUTS, 12),
    ("the theme of the thesis: xyxyzyzxzx", 12),
    ("baab abba baba", 5),
    ("    Abba baba    aBBa\n\n", 5),  # begins and ends with white space, and has capitals
)
SHORT = (("ab", 10), ("a", 3), ("", 3), ("aaaa", 9))
ENCODED = (
    CLASSIC,
    WORDS[::-1],
    "lowest shells newer slower widely",
    "eeessst she she she aaaa",
    UMLAUTS,
    "sees these shores wewewest lololower",
    "  Low lower  WIDEST \n",
)


class LearnerTokenizer(Explainer):
    """A learner's tokenizer class. Its errors become CheckFailed."""

    def __init__(self, file: LearnerFile, cls: Any, say: Say) -> None:
        super().__init__(file, STEPS, MISTAKES, FUNCTIONS)
        self.cls, self.say = cls, say
        self.notes: list[tuple[str, str]] = []

    def ask(self, doing: str, step: int, call: Callable[[], Any]) -> Any:
        """The result of `call`, which runs the learner's code.

        Exceptions, and a call that takes longer than LIMIT_S, become CheckFailed."""
        try:
            return self.limited(doing, step, call)
        except CheckFailed:
            raise
        except (Exception, SystemExit) as error:
            raise self.stopped(error, doing, step_named_in(error) or step) from error

    def limited(self, doing: str, step: int, call: Callable[[], Any]) -> Any:
        """The result of `call`, which runs the learner's code. Exceptions of the code pass through.

        A call that takes longer than LIMIT_S becomes CheckFailed, at `step`. A `step` of 0 stands
        for the step of training, 1 or 2, in which the code was."""
        self.say(f"step {step or 1}: {doing}")
        try:
            with within(LIMIT_S):
                return call()
        except TookTooLong as error:
            raise self.endless(error, doing, step or self.step_of_training(error)) from None

    def endless(self, error: TookTooLong, doing: str, step: int) -> CheckFailed:
        """The CheckFailed for code that does not end.

        Quotes the line that ran last, unless the line cannot belong to `step`."""
        place = place_of(error, self.file.path)
        known = self.steps[step - 1]
        region = self.region(step) if step <= 2 else None
        shown = place is not None and (region is None or place[0] in region)
        quote = self.source.quote(place[0]) if place is not None and shown else ""
        return CheckFailed(
            "time-limit",
            f"{doing} does not end within {LIMIT_S:g} seconds, in step {step}, {known.name}{quote}",
            (
                "which loop does not end, and what should change in each round?",
                f"a loop ends only if its condition becomes false; {known.tell}",
                f"{known.show}{quote}",
            ),
            step,
        )

    def needs(self, method: str) -> None:
        """Raise CheckFailed if the learner's class has no method `method`."""
        if not callable(getattr(self.cls, method, None)):
            own = [n for n in vars(self.cls) if not n.startswith("__") and n not in METHODS]
            raise self.missing(METHODS[method], "method", method, own)

    def trained(self, text: str, n: int) -> Any:
        """A new instance of the learner's class, after `train(text, n)`."""
        self.needs("train")
        doing = f"train({_short(text)}, {n})"
        mine = self.new()
        try:
            self.limited(doing, 0, lambda: mine.train(text, n))
        except CheckFailed:
            raise
        except (Exception, SystemExit) as error:
            step = self.step_of_training(error)
            if step == 1 and isinstance(error, UnicodeError):
                raise self.mistake("not-utf8", f" (train stops: {in_words(error)})") from error
            raise self.stopped(error, doing, step) from error
        return mine

    def new(self) -> Any:
        """A new instance of the learner's class."""
        return self.ask(f"building `{self.cls.__name__}`", 1, self.cls)

    def watched(self, text: str, n: int) -> Watch:
        """A record of the values that the learner's functions hold and return while they train."""
        with (
            contextlib.suppress(Exception, SystemExit, TookTooLong),
            Watch(self.file.path) as watch,
            within(WATCH_LIMIT_S),
        ):
            self.cls().train(text, n)
        return watch

    def finds_pair(self) -> bool:
        """Whether train finds the most frequent pair of the text BEGIN."""
        return self.watched(BEGIN, 1).holds(reference.learn(BEGIN, 1)[0])

    def merges_right(self) -> bool | None:
        """Whether train merges the first pair correctly in all texts in which it finds this pair.

        None if train never merges the pair correctly."""
        seen = []
        for text, _ in TRAINED:
            ids = reference.to_bytes(text)
            pair = reference.learn(text, 1)[0]
            watch = self.watched(text, 1)
            if watch.holds(pair):
                seen.append(watch.holds(reference.merge(ids, pair, 256)))
        return all(seen) if any(seen) else None

    def line_of(self, step: int) -> int | None:
        """The line that chooses a pair (step 1) or makes the merged list (step 2), or None."""
        pattern = r"max|min|most|sort|best" if step == 1 else r"append|skip|\+=|\[.*:.*\]|replace"
        return self.source.find(pattern, self.region(step))

    def region(self, step: int) -> set[int] | None:
        """The lines that can belong to `step`, 1 or 2: in `train`, or in functions called there."""
        watch = self.watched(BEGIN, 1)
        pair = reference.learn(BEGIN, 1)[0]
        merged = reference.merge(reference.to_bytes(BEGIN), pair, 256)
        makers = [name for name in watch.makers(merged) if name != "train"]
        if not makers:
            makers = [name for name in watch.called if re.search(MERGES, name)]
        others = [name for name in watch.called if name not in makers]
        names = makers if step == 2 and makers else ["train", *others]
        return {line for name in names for line in self.source.lines_of(name) or ()}

    def mistake(self, slug: str, evidence: str = "", **facts: Any) -> CheckFailed:
        """The CheckFailed for the mistake `slug`. It quotes a line of the mistake's step."""
        step = next(m.step for m in MISTAKES if m.slug == slug)
        if step <= 2 and "within" not in facts and "line" not in facts:
            within = self.region(step)
            if step == 2:
                at = next(m.at for m in MISTAKES if m.slug == slug)
                if self.source.find(at, within) is None:
                    if slug in _OF_MERGING:
                        facts["line"] = self.line_of(2)
                    within = self.source.lines_of("train")
            facts["within"] = within
        if step == 5 and "line" not in facts:
            for name in ("load", "save"):
                at = next(m.at for m in MISTAKES if m.slug == slug)
                line = self.source.find(at, self.source.lines_of(name))
                if line is not None:
                    facts["line"] = line
                    break
        return super().mistake(slug, evidence, **facts)

    def step_of_training(self, error: BaseException) -> int:
        """The step in which train raised `error`: the step that `error` names, or else 1 or 2."""
        if (named := step_named_in(error)) is not None:
            return named
        place = place_of(error, self.file.path)
        if place is not None and (named := self.source.step_named_at(place[0])) is not None:
            return named
        names = []
        trace = error.__traceback__
        while trace is not None:
            if trace.tb_frame.f_code.co_filename == str(self.file.path):
                names.append(trace.tb_frame.f_code.co_name)
            trace = trace.tb_next
        inner = [name for name in names if name != "train" and not name.startswith("<")]
        if inner and re.search(MERGES, inner[-1]):
            return 2
        if isinstance(error, UnicodeError):
            return 1
        if self.finds_pair():
            return 2
        return 1

    def merges(self, mine: Any, step: int = 0) -> list[Pair]:
        """The learner's merges in order, from a dict {pair: id} or from a list of pairs.

        `step` is 5 for merges that load has read. Raises CheckFailed if `merges` is neither a
        dict {pair: id} nor a list of pairs."""
        found: Any = getattr(mine, "merges", None)
        pairs = _pairs_of(found)
        if pairs is not None:
            if isinstance(found, (list, tuple)) and not self.notes:
                self.notes.append(("merges", "a list of pairs; the exercise asks for a dict"))
            return pairs
        when = "after load" if step == 5 else "after train"
        held = found if isinstance(found, (dict, list, tuple)) else ()
        if any(isinstance(part, bytes) for key in held for part in _parts(key)):
            raise self.of_bytes(found, when, step)
        if isinstance(found, dict) and found and step != 5 and _hashable(found):
            turned = _pairs_of({pair: new for new, pair in found.items()})
            right = reference.learn(TRAINED[0][0], 0 if turned is None else len(turned))
            if turned is not None and (turned == right or self.finds_pair()):
                raise self.mistake("merges-reversed", f" ({when} it is {_short(found)})")
        key = next(iter(found)) if isinstance(found, dict) and found else None
        if step == 5 and key is not None:
            raise self.mistake("load-keys", "", key=repr(key)[:60])
        known = step or (2 if self.finds_pair() else 1)
        raise self.failed_at(
            known,
            "no-merges",
            f"{when}, your `merges` is {_short(found)}; expected a dict from pairs of ids "
            "to new ids, or a list of pairs",
            "what are the keys of your `merges`, and what are its values?",
        )

    def quoted(self, name: str) -> str:
        """The quote of the last `return` line of the method `name`, or else of its `def` line."""
        lines = self.source.lines_of(name)
        returns = self.source.matches(r"\breturn\b", lines)
        return self.source.quote(returns[-1] if returns else self.source.find(r"def ", lines))

    def of_bytes(self, found: Any, when: str, step: int) -> CheckFailed:
        """The CheckFailed for merges that hold bytes instead of ids."""
        if step == 5:
            return self.mistake("load-keys", "", key=repr(next(iter(found)))[:60])
        return self.mistake("merges-of-bytes", f" ({when} it is {_short(found)})")


_OF_MERGING = ("merge-overlapping", "merge-from-right", "merge-first-only", "last-id-lost")
MERGES = r"merg|replac|appl|join|combin|substitut|fuse|swap"


def _parts(key: Any) -> tuple[Any, ...]:
    return tuple(key) if isinstance(key, (tuple, list)) else (key,)


def _hashable(found: dict[Any, Any]) -> bool:
    return all(isinstance(value, (int, str, bytes, tuple)) for value in found.values())


def _pairs_of(found: Any) -> list[Pair] | None:
    """The pairs in a learner's `merges`, in order. None if `merges` is no dict or list of pairs."""
    try:
        if isinstance(found, dict):
            new = {pair: operator.index(i) for pair, i in found.items()}
            found = sorted(new, key=lambda pair: new[pair])
        elif not isinstance(found, (list, tuple)):
            return None
        return [(operator.index(a), operator.index(b)) for a, b in found]
    except (TypeError, ValueError):
        return None


class TokenizerLesson(Lesson[LearnerTokenizer]):
    """The lesson on byte-pair encoding, in five steps."""

    name = "tokenizer"
    steps = STEPS
    mistakes = MISTAKES

    def load(self, file: LearnerFile, say: Say) -> LearnerTokenizer:
        """Run the file and return its tokenizer class, ready to be tried."""
        return LearnerTokenizer(file, _class_of(file), say)

    def check(self, learner: LearnerTokenizer, done: list[Check]) -> str:
        """Compare training, encoding, decoding, saving and loading with the reference."""
        mine, merges = _training(learner)
        _encoding(learner, mine, merges)
        _decoding(learner, mine, merges)
        _saving(learner, mine, merges)
        verdict = f"the same as the reference on {len(TRAINED)} texts"
        done += self.all_steps(verdict)
        done += [Check(name, True, detail, note=True) for name, detail in learner.notes]
        return verdict


def tokenizer_class(file: LearnerFile) -> type[Any]:
    """Run the file and return its tokenizer class, after a test that the class has all methods.

    Raises GptcliError if the class or a method is missing, or if the constructor needs an
    argument."""
    cls = _class_of(file)
    for method in METHODS:
        if not callable(getattr(cls, method, None)):
            raise GptcliError(
                f"{file.name}: `{file.class_name}` has no method `{method}`",
                "the class needs train(text, num_merges), encode(text), decode(ids), save(path) "
                "and load(path)",
            )
    return cls


def _class_of(file: LearnerFile) -> type[Any]:
    """Run the file and return its tokenizer class.

    Raises GptcliError if there is no such class, or if its constructor needs an argument."""
    module = run_file(file)
    cls: Any = getattr(module, file.class_name, None)
    if not inspect.isclass(cls):
        if (error := error_of(file, module, file.class_name)) is not None:
            raise error
        others = [
            name
            for name, value in vars(module).items()
            if inspect.isclass(value) and value.__module__ == module.__name__
        ]
        like = nearest(file.class_name, others)
        raise GptcliError(
            f"{file.name}: there is no class `{file.class_name}`"
            + (f"; the file has {', '.join(f'`{other}`' for other in others)}" if others else ""),
            f"should `{like}` be called `{file.class_name}`?"
            if like
            else f"write `class {file.class_name}`",
        )
    found: type[Any] = cls
    needed = [
        p.name
        for p in inspect.signature(found).parameters.values()
        if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    if needed:
        raise GptcliError(
            f"{file.name}: the constructor of `{file.class_name}` needs an argument `{needed[0]}`",
            f"gptcli calls {file.class_name}() without arguments; train(text, num_merges) gets the "
            "text",
        )
    return found


def _training(learner: LearnerTokenizer) -> tuple[Any, list[Pair]]:
    found = []
    numbered = True
    for text, n in TRAINED:
        mine = learner.trained(text, n)
        found.append(learner.merges(mine))
        ids = sorted(mine.merges.values()) if isinstance(mine.merges, dict) else []
        numbered = numbered and (not ids or ids == list(range(256, 256 + len(ids))))
    for least in (1, 2):  # it is also right to stop if every pair occurs only once
        if all(
            got == reference.learn(text, n, least=least)
            for got, (text, n) in zip(found, TRAINED, strict=True)
        ):
            break
    else:
        raise _shared(learner, found[-1]) or _wrong_training(learner, found)
    if (shared := _shared(learner, found[-1])) is not None:
        raise shared
    if not numbered:
        ids = sorted(learner.trained(*TRAINED[0]).merges.values())
        raise learner.mistake("wrong-new-id", f" (your ids are {ids[0]} to {ids[-1]})")
    for text, n in SHORT:
        mine = learner.new()
        try:
            learner.limited(f"train({_short(text)}, {n})", 0, partial(mine.train, text, n))
        except CheckFailed:
            raise
        except (Exception, SystemExit) as error:
            raise learner.mistake(
                "too-few-pairs", "", text=text, n=n, error=in_words(error)
            ) from error
        got = learner.merges(mine)
        if got not in [reference.learn(text, n, least=least) for least in (1, 2)]:
            raise learner.failed_at(
                1,
                "wrong-merges",
                f"train({text!r}, {n}) learns the merges {_short(got)}, expected "
                f"{_short(reference.learn(text, n))}",
                "how many pairs does such a short text have?",
            )
    mine = learner.trained(WORDS, 30)
    return mine, learner.merges(mine)


def _shared(learner: LearnerTokenizer, learnt: list[Pair]) -> CheckFailed | None:
    """The CheckFailed if a new tokenizer already has another tokenizer's merges; else None."""
    fresh = learner.new()
    if not learnt or _pairs_of(getattr(fresh, "merges", None)) != learnt:
        return None
    names = learner.source.functions()
    inside = {line for name in names for line in learner.source.lines_of(name) or ()}
    outside = learner.source.matches(r"\w\s*(:[^=]+)?=\s*(\{|\[|dict|list)")
    line = next((line for line in outside if line not in inside), None)
    if line is None:  # an argument's default value is made only once
        line = learner.source.find(r"def __init__\(.*=\s*(\{|\[|dict\(|list\()")
    name = learner.cls.__name__
    count = counted(len(learnt), "merge")
    return learner.mistake("merges-shared", line=line, within=(), name=name, count=count)


def _wrong_training(learner: LearnerTokenizer, found: list[list[Pair]]) -> CheckFailed:
    wants = [reference.learn(text, n) for text, n in TRAINED]
    wrong = [
        (text, n, got, wanted)
        for got, wanted, (text, n) in zip(found, wants, TRAINED, strict=True)
        if got != wanted
    ]
    # prefer a text whose first merge is wrong, because this is the clearest evidence
    text, n, got, wanted = next((w for w in wrong if w[2][:1] != w[3][:1]), wrong[0])
    at = next(
        (i for i, (a, b) in enumerate(zip(got, wanted, strict=False)) if a != b),
        min(len(got), len(wanted)),
    )
    have = str(got[at]) if at < len(got) else "missing"
    want = str(wanted[at]) if at < len(wanted) else "none"
    evidence = (
        f" (train({_short(text)}, {n}): merge number {at}, counted from 0, is {have}, "
        f"expected {want})"
    )
    if not any(found) and learner.finds_pair():
        return learner.mistake("merges-not-kept", evidence)
    for mistake in MISTAKES:
        for form in mistake.forms if mistake.step <= 2 else ():
            if all(
                got in (learnt := form(text, n), _last_of_each(learnt))
                for got, (text, n) in zip(found, TRAINED, strict=True)
            ):
                return learner.mistake(mistake.slug, evidence)
    if all(got[: len(w)] == w[: len(got)] for got, w in zip(found, wants, strict=True)):
        return learner.failed_at(
            1,
            "wrong-merges",
            f"your first merges are right, but you have {counted(len(got), 'merge')}, expected "
            f"{len(wanted)}{evidence}",
            "when does the loop of train end?",
        )
    first = any(got[:1] != w[:1] for got, w in zip(found, wants, strict=True))
    turned = [[(b, a) for a, b in got] for got in found]
    if first and all(t[:1] == w[:1] for t, w in zip(turned, wants, strict=True)):
        return learner.failed_at(
            2 if learner.finds_pair() else 1,
            "wrong-merges",
            f"the two ids of your pairs are in the wrong order{evidence}",
            "which id of a pair comes first in the text?",
        )
    if first:
        step = _step_of_first_merge(learner, found, wants)
    else:
        step = 1 if learner.merges_right() else 2
    what = "the first merge" if at == 0 else "a later merge"
    return learner.failed_at(
        step,
        "wrong-merges",
        f"{what} is wrong{learner.source.quote(learner.line_of(step))}{evidence}",
        "do the first merges of a short text by hand: which merge differs from yours?",
    )


def _step_of_first_merge(
    learner: LearnerTokenizer, found: list[list[Pair]], wants: list[list[Pair]]
) -> int:
    """The step, 1 or 2, that makes a wrong first merge.

    Step 1 if train does not find the most frequent pair of BEGIN, or if it merges no text's first
    pair correctly. Else step 2 if train merges the correct pair wrongly in some text, or if it
    merges the correct pair but keeps another pair as the first merge. In all other cases step 1."""
    if not learner.finds_pair() or (right := learner.merges_right()) is None:
        return 1
    if not right:
        return 2
    for (text, _), got, wanted in zip(TRAINED, found, wants, strict=True):
        merged = reference.merge(reference.to_bytes(text), wanted[0], 256)
        if got[:1] != wanted[:1] and learner.watched(text, 1).holds(merged):
            return 2
    return 1


def _last_of_each(merges: list[Pair]) -> list[Pair]:
    """The merges without repeated pairs. A pair that was learnt twice keeps its last place."""
    return list(dict.fromkeys(reversed(merges)))[::-1]


def _encoding(learner: LearnerTokenizer, mine: Any, merges: list[Pair]) -> None:
    learner.needs("encode")
    classic = learner.trained(CLASSIC, 3)
    tried = [(classic, learner.merges(classic), CLASSIC)]
    tried += [(mine, merges, text) for text in ENCODED]
    umlauts = learner.trained(UMLAUTS, 12)
    tried.append((umlauts, learner.merges(umlauts), UMLAUTS[::-1]))
    mixed = learner.trained(MIXED, 14)
    tried += [(mixed, learner.merges(mixed), text) for text in (MIXED[::-1], MIXED[7:])]
    found = [_encoded(learner, t, text) for t, _, text in tried]
    for ids, (used, got, text) in zip(found, tried, strict=True):
        wanted = reference.encode(got, text)
        if ids == wanted:
            continue
        trained_on = {id(classic): (CLASSIC, 3), id(umlauts): (UMLAUTS, 12), id(mixed): (MIXED, 14)}
        again = trained_on.get(id(used), (WORDS, 30))
        if (kept := _state_kept(learner, "encode", again, text, ids, wanted)) is not None:
            raise kept
        at = next((i for i, (a, b) in enumerate(zip(ids, wanted, strict=False)) if a != b), 0)
        evidence = (
            f" (encode({_short(text)}) returns {_short(ids[at : at + 6])} from token {at} on, "
            f"expected {_short(wanted[at : at + 6])})"
        )
        for mistake in MISTAKES:
            for form in mistake.forms if mistake.step == 3 else ():
                if all(i == form(m, t) for i, (_, m, t) in zip(found, tried, strict=True)):
                    raise learner.mistake(mistake.slug, evidence)
        table = reference.token_bytes(got)
        whole = b"".join(table[i] if 0 <= i < len(table) else b"?" for i in ids)
        if any(not 0 <= i < len(table) for i in ids):
            worst = next(i for i in ids if not 0 <= i < len(table))
            raise learner.failed_at(
                3,
                "wrong-ids",
                f"your encode returns the id {worst}, but the ids go from 0 to {len(table) - 1}"
                f"{evidence}",
                "which line makes that id?",
            )
        if whole != text.encode("utf-8"):
            raise learner.mistake("encode-loses-ids", evidence, yours=_short(whole))
        raise learner.failed_at(
            3,
            "wrong-ids",
            f"your ids stand for the right bytes, but your encode merges the wrong pairs{evidence}",
        )
    for text in ("", "a", "é"):
        try:
            encoded = learner.limited(f"encode({text!r})", 3, partial(_ids_of, mine, text))
            ids = [operator.index(i) for i in encoded]
        except CheckFailed:
            raise
        except (Exception, SystemExit) as error:
            raise learner.mistake("short-text", "", text=text, error=in_words(error)) from error
        if ids != (wanted := reference.encode(merges, text)):
            kept = _state_kept(learner, "encode", (WORDS, 30), text, ids, wanted)
            raise kept or learner.failed_at(
                3,
                "wrong-ids",
                f"encode({text!r}) returns {ids}, expected {wanted}{learner.quoted('encode')}",
            )


def _state_kept(
    learner: LearnerTokenizer,
    method: str,
    training: tuple[str, int],
    argument: Any,
    got: Any,
    wanted: Any,
) -> CheckFailed | None:
    """The CheckFailed if an earlier call changed what `method` returns; None if no call did.

    `method` returned `got`, but should return `wanted`. The file runs again, because its class can
    hold results of earlier calls, too. Then a new tokenizer learns from `training`, and `method` is
    called on this tokenizer."""
    with contextlib.suppress(Exception, SystemExit, TookTooLong), within(LIMIT_S):
        fresh = _class_of(learner.file)()
        fresh.train(*training)
        if getattr(fresh, method)(_copy(argument)) == wanted:
            known = learner.source.lines_of(method) or set()
            at = next(m.at for m in MISTAKES if m.slug == "state-kept")
            # the line to quote stores a value for later calls, such as `memo[key] = ids`
            line = learner.source.find(at, known)
            if line is None:
                line = learner.source.find(r"cache", learner.source.lines_of(method))
            call = f"{method}({_short(argument)})"
            return learner.mistake(
                "state-kept", step=METHODS[method], line=line, within=known, call=call,
                yours=_short(got), wanted=_short(wanted), method=method,
            )  # fmt: skip
    return None


def _copy(argument: Any) -> Any:
    return list(argument) if isinstance(argument, list) else argument


def _decoding(learner: LearnerTokenizer, mine: Any, merges: list[Pair]) -> None:
    learner.needs("decode")
    tried = [reference.encode(merges, text) for text in (WORDS, UMLAUTS, "")]
    invalid = [[128], [255, 65, 254], [*"é".encode()[:1], 66], [*"你".encode()[:2], 97]]
    found = []
    changed = None  # the ids before and after the first decode that changed them
    for ids in tried:
        found.append(_decoded(learner, mine, given := list(ids)))
        changed = changed or ((ids, given) if given != ids else None)
    for ids in invalid:
        given = list(ids)
        try:
            found.append(learner.limited(f"decode({ids})", 4, partial(mine.decode, given)))
        except CheckFailed:
            raise
        except UnicodeDecodeError as error:
            raise learner.mistake("strict-utf8", "", ids=ids, error=in_words(error)) from error
        except (Exception, SystemExit) as error:
            raise learner.stopped(error, f"decode({ids})", step_named_in(error) or 4) from error
        changed = changed or ((ids, given) if given != ids else None)
    if changed is not None:
        before, after = changed
        raise learner.mistake("ids-changed", ids=_short(before), after=_short(after))
    tried += invalid
    for text, ids in zip(found, tried, strict=True):
        wanted = reference.decode(merges, ids)
        if text == wanted:
            continue
        evidence = f" (decode({_short(ids)}) returns {_short(text)}, expected {_short(wanted)})"
        for mistake in MISTAKES:
            for form in mistake.forms if mistake.step == 4 else ():
                if all(t == form(merges, i) for t, i in zip(found, tried, strict=True)):
                    raise learner.mistake(mistake.slug, evidence)
        kept = _state_kept(learner, "decode", (WORDS, 30), ids, text, wanted)
        if kept is not None:
            raise kept
        what = "another text" if isinstance(text, str) else f"a {type(text).__name__}, not a str"
        line = learner.source.find(r"\breturn\b", learner.source.lines_of("decode"))
        quote = learner.source.quote(line)
        raise learner.failed_at(
            4,
            "wrong-text",
            f"your decode returns {what}{quote}{evidence}",
            "for which ids is your text right, and for which ids is it wrong?",
        )


def _saving(learner: LearnerTokenizer, mine: Any, merges: list[Pair]) -> None:
    learner.needs("save")
    with tempfile.TemporaryDirectory(prefix="gptcli-check-") as folder:
        path = str(Path(folder) / "my tokenizer.json")
        learner.ask("save(path)", 5, lambda: mine.save(path))
        learner.needs("load")
        other = learner.trained(CLASSIC, 3)
        held = learner.merges(other)

        def load() -> Any:
            static = inspect.getattr_static(learner.cls, "load")
            if isinstance(static, classmethod | staticmethod):
                return learner.cls.load(path)
            fresh = learner.cls()
            given = fresh.load(path)
            if ("load", INSTANCE) not in learner.notes:
                learner.notes.append(("load", INSTANCE))
            return fresh if given is None else given

        again = learner.ask("load(path)", 5, load)
        if again is None:
            raise learner.failed_at(
                5,
                "returns-nothing",
                f"your load returned None, not a {learner.cls.__name__}" + learner.quoted("load"),
                "what is the last line of load?",
            )
        if not hasattr(again, "merges"):
            raise learner.failed_at(
                5,
                "returns-nothing",
                f"your load returned a {type(again).__name__}, not a {learner.cls.__name__}"
                + learner.quoted("load"),
                "which object does load return?",
            )
        got = learner.merges(again, step=5)
        if got == held != merges:
            count = f" ({counted(len(got), 'merge')}, expected {len(merges)})"
            raise learner.mistake("load-ignores-file", count)
        if len(got) != len(merges):
            count = counted(len(got), "merge")
            raise learner.mistake("load-loses-merges", "", count=count, wanted=len(merges))
        for i, (a, b) in enumerate(zip(got, merges, strict=True)):
            if a != b:
                raise learner.mistake("load-changes-merges", "", i=i, yours=a, wanted=b)
        ids = learner.ask("encode after load", 5, lambda: list(again.encode(WORDS)))
        text = learner.ask("decode after load", 5, lambda: again.decode(ids))
        if ids != reference.encode(merges, WORDS) or text != WORDS:
            raise learner.failed_at(
                5,
                "load-incomplete",
                f"after load the merges are right, but encode and decode turn {_short(WORDS)} into "
                f"{_short(text)}" + learner.quoted("load"),
                "what else do encode and decode use besides `merges`, and does load set it?",
            )


def _encoded(learner: LearnerTokenizer, mine: Any, text: str) -> list[int]:
    ids = learner.ask(f"encode({_short(text)})", 3, lambda: _ids_of(mine, text))
    try:
        return [operator.index(i) for i in ids]
    except TypeError:
        what = "not a list of ids"
        quote = learner.quoted("encode")
        raise learner.failed_at(
            3,
            "no-list",
            f"encode({_short(text)}) returned {_short(ids)}, {what}{quote}",
            "what does encode return, and which type do its items have?",
        ) from None


def _ids_of(mine: Any, text: str) -> Any:
    """What the learner's encode returns; a list if encode is a generator."""
    ids = mine.encode(text)
    return list(ids) if isinstance(ids, Iterator) else ids


def _decoded(learner: LearnerTokenizer, mine: Any, ids: list[int]) -> Any:
    return learner.ask(f"decode({_short(ids)})", 4, lambda: mine.decode(ids))


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
