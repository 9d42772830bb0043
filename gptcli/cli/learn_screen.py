"""The screen of `gptcli learn` as lines of text: steps, verdict, hints, reference, exercises."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from rich.cells import cell_len
from rich.text import Text

from gptcli.course.attention.picture import heat, mark, steps
from gptcli.course.catalogue import Exercise
from gptcli.course.progress_file import Record
from gptcli.course.report import FileReport
from gptcli.course.solutions import Pair
from gptcli.errors import GptcliError
from gptcli.files.paths import shell_word
from gptcli.plurals import agreeing, counted
from gptcli.view.safe_text import clean, crop

WIDE = 120  # the width that file and reference need side by side
_INDENT = "  "
_LATER = "; later steps are still to be written"


@dataclass
class State:
    """The data that the screen shows."""

    folder: Path
    exercises: tuple[Exercise, ...]
    records: dict[str, Record]
    at: int = 0
    view: str = "work"  # or "compare", "list", "done"
    report: FileReport | None = None
    error: GptcliError | None = None
    missing: bool = False
    checking_s: float | None = None  # seconds since the check began
    hint: int = 0  # strength of the hint that is shown; 0: none
    prints: list[str] = field(default_factory=list)  # lines that the file printed
    to_write: int | None = None  # the line of `raise` in the step that must be written
    pairs: list[Pair] = field(default_factory=list)  # what the view "compare" shows
    note: str = ""
    trouble: str = ""  # a problem with progress.json
    offset: int = 0  # index of the first visible line of the body
    selected: int = 0  # the chosen row in the view "list"
    checked_at: str = ""
    started: bool = False  # whether PyTorch is loaded, so that checks are quick
    has_keys: bool = True  # whether the learner can press keys

    @property
    def exercise(self) -> Exercise:
        """The exercise on which the learner works."""
        return self.exercises[self.at]

    @property
    def path(self) -> Path:
        """The learner's file for the exercise."""
        return self.folder / f"{self.exercise.name}.py"

    @property
    def record(self) -> Record:
        """What progress.json records about the exercise: attempts, time, hints."""
        return self.records.get(self.exercise.name, Record())

    @property
    def passes(self) -> bool:
        """Whether the file passed the most recent check."""
        return self.report is not None and self.report.ok


def render(state: State, width: int, height: int, *, unicode: bool = True) -> list[Text]:
    """The screen as at most `height` lines of at most `width` cells.

    If the body of the screen has too many lines, a line below its visible part says how many lines
    follow. If `state.offset` is too large, it is lowered. In the view "list", `state.offset` is set
    so that the chosen row is visible."""
    head, body = _parts(state, width, height, unicode)
    foot = _foot(state, width, unicode)
    room = max(1, height - len(head) - len(foot))
    shown = _window(state, body, room, width, unicode)
    lines = [*head, *shown, *foot]
    if len(lines) > height:  # drop lines from the top; if only one line fits, it is shown[0]
        lines = [*shown, *foot][-height:] if height > 1 else shown[:1]
    lines = [_cut(line, width, unicode) for line in lines]
    for line in lines:
        line.end = ""
    return lines


def render_plain(state: State, width: int, *, unicode: bool = True) -> list[Text]:
    """The state of the exercise as lines of text without keys, for pipes and log files."""
    head, body = _parts(state, width, 10_000, unicode)
    return [*head, *body]


def _parts(state: State, width: int, height: int, unicode: bool) -> tuple[list[Text], list[Text]]:
    if state.view == "list":
        return _list_head(state, width), _list_body(state, width, unicode)
    if state.view == "done":
        return [Text("The course is complete: all exercises pass.", style="bold green"), Text()], [
            row for line in what_now(state) for row in _wrapped(Text(clean(line)), width)
        ]
    if state.view == "compare":
        return _compare_head(state, width, unicode), comparison(state.pairs, width, unicode)
    return _work_head(state, width, unicode), _work_body(state, width, height, unicode)


# ---- the view "work" ----


def _work_head(state: State, width: int, unicode: bool) -> list[Text]:
    left = f"{state.exercise.name} ({_weeks(state.exercise)})"
    left += f", exercise {state.at + 1} of {len(state.exercises)}"
    cost = spent(state.record)
    notes = state.path.with_suffix(".md")
    title = Text(left, style="bold")
    if cell_len(left) + len(cost) + 2 <= width:
        title.append(" " * (width - cell_len(left) - len(cost)))
        title.append(cost, style="dim")
    files = Text.assemble(("write ", "dim"), _path(state.path, width - 6, unicode))
    beside = Text.assemble(("   questions ", "dim"), clean(str(notes)))
    if files.cell_len + beside.cell_len <= width:
        files.append_text(beside)
    return [title, files, Text()]


def _weeks(exercise: Exercise) -> str:
    return f"week{'s' if ' and ' in exercise.week else ''} {exercise.week}"


def _path(path: Path, width: int, unicode: bool) -> str:
    """The path in at most `width` cells. The beginning of a longer path is cut off."""
    return crop(clean(str(path)), width, ellipsis="…" if unicode else "...", keep_end=True)


def spent(record: Record) -> str:
    """How much work an exercise took, in words: "12 attempts, 34 min, 3 hints"."""
    minutes = f"{record.seconds / 60:.0f} min" if record.seconds >= 60 else "under 1 min"
    attempts = counted(record.attempts, "attempt")
    return f"{attempts}, {minutes}, {counted(record.hints_used, 'hint')}"


def _work_body(state: State, width: int, height: int, unicode: bool) -> list[Text]:
    verdict = _verdict(state, width)
    lines = [*_step_lines(state, width, unicode), Text(), *verdict]
    report = state.report
    if report is not None:
        for check in report.checks:
            if check.note:
                told = Text.assemble(("note: ", "yellow"), clean(f"{check.name}: {check.detail}"))
                lines += _wrapped(told, width)
        maps = heat(report.picture, unicode) if report.picture is not None else []
        # The maps are less important: show them only if there is room for them.
        if maps and len(lines) + len(maps) + 9 <= height and max(map(len, maps)) <= width:
            lines += [Text(), *map(Text, maps)]
    if state.prints:
        lines += [Text(), Text("your file prints:", style="dim")]
        for line in state.prints:
            lines += _wrapped(Text(_INDENT + clean(line)), width)
    return lines


def _step_lines(state: State, width: int, unicode: bool) -> list[Text]:
    report = state.report
    if (
        report is not None
        and report.picture is not None
        and report.picture.steps
        and not is_to_write(report)
    ):
        return steps(report, 10_000, unicode)  # `render` cuts them to the width
    lines = []
    for number, name in enumerate(state.exercise.steps, 1):
        step = _state_of_step(state, number)
        sign, style = (">", "bold cyan") if step == "next" else mark(step, unicode)
        line = Text(f"  {sign} {number}  ", style=style)
        line.append(name, style="dim" if style == "dim" else "")
        lines.append(line)
    return lines


def _state_of_step(state: State, number: int) -> str:
    report = state.report
    if report is None:
        return "after"
    if report.ok:
        return "right"
    wrong = report.first_wrong_step
    if wrong is None or number > wrong:
        return "after"
    if number == wrong:
        return "next" if is_to_write(report) else "wrong"
    seen = {check.name.partition(" ")[0] for check in report.checks if check.ok}
    picture = {} if report.picture is None else {s.step: s.state for s in report.picture.steps}
    return picture.get(number, "right" if str(number) in seen else "unseen")


def _verdict(state: State, width: int) -> list[Text]:
    report, name = state.report, clean(state.path.name)
    if state.missing:
        again = (
            "press r to write the skeleton again"
            if state.has_keys
            else f"start `gptcli learn {shell_word(state.folder)}` again, which writes the skeleton"
        )
        return _wrapped(
            Text.assemble(
                ("gone: ", "bold red"),
                clean(f"there is no file {state.path} any more. Put it back, or {again}."),
            ),
            width,
        )
    if state.error is not None:
        lines = _wrapped(
            Text.assemble(("cannot be checked: ", "bold red"), clean(state.error.message)), width
        )
        if state.error.hint:
            lines += [Text(), *_labelled("hint: ", clean(state.error.hint), width)]
        return lines
    if report is None:
        if state.started:
            return [Text("The first check is running.", style="dim")]
        slow = "The first check starts PyTorch, which takes a few seconds. Read the questions."
        return _wrapped(Text(slow, style="dim"), width)
    if report.ok:
        return _wrapped(Text.assemble(("ok: ", "bold green"), clean(report.message)), width)
    if is_to_write(report):
        assert report.first_wrong_step is not None
        step = state.exercise.steps[report.first_wrong_step - 1]
        where = "" if state.to_write is None else f" (line {state.to_write})"
        told = Text.assemble(
            ("next: ", "bold cyan"),
            f"step {report.first_wrong_step}, {step}. Write it in {name}{where} in place of "
            "`raise NotImplementedError`, and save. The comment above that line says what the "
            "step must compute.",
        )
    else:
        message = report.message.removesuffix(_LATER)  # the steps above show this already
        told = Text.assemble(("wrong: ", "bold red"), clean(message))
    return [*_wrapped(told, width), *_hints(state, width)]


def is_to_write(report: FileReport) -> bool:
    """Whether the first step that is not right must still be written."""
    still = "still to be written" in report.message.partition(":")[0]
    return report.mistake == "not-implemented" and report.first_wrong_step is not None and still


def _hints(state: State, width: int) -> list[Text]:
    report = state.report
    if report is None or not report.hints or not state.hint:
        return []
    strongest = strengths(report)
    label = "hint: " if strongest == 1 else f"hint {state.hint} of {strongest}: "
    return [Text(), *_labelled(label, clean(distinct_hints(report)[state.hint - 1]), width)]


def distinct_hints(report: FileReport) -> list[str]:
    """The hints from weak to strong, without repetitions."""
    return list(dict.fromkeys(report.hints))


def strengths(report: FileReport) -> int:
    """How many different hints a report has."""
    return len(distinct_hints(report))


def _labelled(label: str, text: str, width: int) -> list[Text]:
    return _wrapped(Text.assemble((label, "bold cyan"), text), width)


# ---- the view "compare" ----


def _compare_head(state: State, width: int, unicode: bool) -> list[Text]:
    name = state.exercise.name
    report = state.report
    if report is not None and report.ok:
        sign, style = mark("right", unicode)
        title = Text(
            f"{sign} {name} passes: all {len(state.exercise.steps)} steps", style=f"bold {style}"
        )
        title.append(f"   {spent(state.record)}", style="dim")
    else:
        title = Text(f"{name}: the reference (your file does not pass yet)", style="bold")
    lines = [title]
    if report is not None and report.ok:
        for check in report.checks:
            if check.note:
                told = Text.assemble(("note: ", "yellow"), clean(f"{check.name}: {check.detail}"))
                lines += _wrapped(told, width)
    lines.append(Text())
    return lines


def comparison(pairs: list[Pair], width: int, unicode: bool) -> list[Text]:
    """The learner's lines and the reference, side by side if `width` is large enough.

    In a narrow window, the learner's lines of a step come first, then the reference's lines of this
    step."""
    bar = "│" if unicode else "|"
    if width >= WIDE - 1:
        left = (width - 3) // 2
        right = width - 3 - left
        lines = [_beside(Text("your file", "bold"), Text("the reference", "bold"), left, bar)]
        for pair in pairs:
            margin = _margin(pair)
            mine = [row for line in pair.learner for row in _code(line, left, margin)]
            ours = [row for line in pair.reference for row in _code(line, right, margin)]
            for row in range(max(len(mine), len(ours))):
                a = mine[row] if row < len(mine) else Text()
                b = ours[row] if row < len(ours) else Text()
                lines.append(_beside(a, b, left, bar))
            lines.append(_beside(Text(), Text(), left, bar))
        return lines[:-1]
    lines = []
    for pair in pairs:
        for title, part, style in (
            ("your file", pair.learner, "cyan"),
            ("the reference", pair.reference, "green"),
        ):
            about = f", step {pair.step}" if pair.step else ""
            rule = "─" if unicode else "-"
            heading = f"{rule * 2} {title}{about} "
            lines.append(Text(heading + rule * max(0, width - cell_len(heading)), style=style))
            lines += [row for line in part for row in _code(line, width, _margin(pair))]
    return lines


def _margin(pair: Pair) -> int:
    """The number of spaces with which every line of `pair` begins. Blank lines do not count."""
    texts = [text for _, text in (*pair.learner, *pair.reference) if text.strip()]
    return min((len(text) - len(text.lstrip(" ")) for text in texts), default=0)


def _code(line: tuple[int, str], width: int, margin: int) -> list[Text]:
    """The rows that show one line of a file: its number, and its text from column `margin` on."""
    number, text = line
    room = max(8, width - 5)
    text = clean(text[margin:])
    rows = []
    for at, piece in enumerate(_pieces(text, room)):
        comment = text.lstrip().startswith("#")
        label = f"{number:>4} " if at == 0 else " " * 5
        rows.append(Text.assemble((label, "dim"), (piece, "dim" if comment else "")))
    return rows


def _pieces(text: str, room: int) -> list[str]:
    """The text in pieces of at most `room` cells.

    If the second half of the `room` has a blank, the piece ends after the last blank."""
    if cell_len(text) <= room:
        return [text]
    pieces, piece, cells = [], "", 0
    for character in text:
        wide = cell_len(character)
        if cells + wide > room:
            at = piece.rfind(" ") + 1
            at = at if at > len(piece) // 2 else len(piece)
            pieces.append(piece[:at])
            piece = piece[at:]
            cells = cell_len(piece)
        piece += character
        cells += wide
    return [*pieces, piece]


def _beside(left: Text, right: Text, width: int, bar: str) -> Text:
    gap = " " * max(0, width - left.cell_len)
    line = Text.assemble(left, gap, (f" {bar} ", "dim"), right)
    line.rstrip()
    return line


# ---- the view "list" ----


def _list_head(state: State, width: int) -> list[Text]:
    passed = sum(state.records.get(e.name, Record()).passed is not None for e in state.exercises)
    what = f"{passed} of {len(state.exercises)} {agreeing(passed, 'passes', 'pass')}"
    title = Text(f"the course: {what}", style="bold")
    return [title, Text()]


def _list_body(state: State, width: int, unicode: bool) -> list[Text]:
    lines = []
    for number, exercise in enumerate(state.exercises):
        record = state.records.get(exercise.name, Record())
        sign, style = mark("right" if record.passed else "after", unicode)
        chosen = number == state.selected
        line = Text(f"{'>' if chosen else ' '} {sign} ", style="bold" if chosen else style)
        line.append(f"{exercise.name:<11}{_weeks(exercise):<14}", style="bold" if chosen else "")
        if record.passed:
            line.append(f"{'passed ' + record.passed[:10]:<18} ", style="green")
        else:
            begun = "begun" if record.attempts or record.seconds else "not begun"
            line.append(f"{begun:<18} ", style="dim")
        if record.attempts:
            line.append(spent(record))
        if record.solution_seen:
            line.append(", solution seen", style="yellow")
        lines.append(line)
    chosen_exercise = state.exercises[state.selected]
    return [*lines, Text(), Text(f"{chosen_exercise.name}: {chosen_exercise.summary}", style="dim")]


def what_now(state: State) -> list[str]:
    """The lines that are shown after the last exercise: commands that use the learner's files."""
    files = {e.name: state.folder / f"{e.name}.py" for e in state.exercises}
    parts = ("attention", "layernorm", "mlp", "block", "tokenizer")
    options = [f"--{name} {shell_word(files[name])}" for name in parts]
    sampler = f" --sampler {shell_word(files['sampling'])}"
    modern = shell_word(files["modern"])
    return [
        "Train a model that is made of your files, and let it write:",
        "",
        "gptcli train course " + " ".join(options) + " --out runs/own",
        "gptcli sample runs/own " + " ".join(options) + sampler,
        "",
        "Sample with your key/value cache, and see how much faster it is:",
        "",
        f"gptcli train course --attention {shell_word(files['cache'])} --out runs/cache",
        f"gptcli sample runs/cache --attention {shell_word(files['cache'])}",
        "",
        "Train with the norm and the attention of 2025:",
        "",
        f"gptcli train course --layernorm {modern} --attention {modern} --out runs/modern",
    ]


# ---- the last lines, and cutting text ----


def keys_of(state: State, unicode: bool = True) -> list[tuple[str, str]]:
    """(key, what it does) for each key in the last line of the screen."""
    arrows = "↑↓" if unicode else "j k"
    if state.view == "list":
        return [(arrows, "choose"), ("Enter", "work on it"), ("l", "back"), ("q", "quit")]
    if state.view == "done":
        return [("l", "list"), ("q", "quit")]
    if state.view == "compare":
        onward = [("n", "next exercise")] if state.passes else []
        return [(f"{arrows} space", "scroll"), *onward, ("s", "back"), ("l", "list"), ("q", "quit")]
    keys = [("e", "edit"), ("h", "hint"), ("s", "solution"), ("l", "list"), ("r", "reset")]
    return [*keys, ("n", "next"), ("q", "quit")]


def _foot(state: State, width: int, unicode: bool) -> list[Text]:
    lines = [Text()]
    if state.trouble:
        lines += _wrapped(Text(clean(f"note: {state.trouble}"), style="bold yellow"), width)
    if state.note:
        lines += _wrapped(Text(clean(state.note), style="yellow"), width)
    if state.checking_s is not None:
        slow = state.checking_s > 4
        what = "checking" if state.started else "starting PyTorch"
        what += f", {state.checking_s:.0f} s" * slow
        ends = " (a loop without end is stopped)" * (slow and state.started)
        lines.append(Text(f"{what} ...{ends}", style="dim"))
    elif state.checked_at and state.view == "work":
        again = "save the file to check it again"
        lines.append(Text(f"checked at {state.checked_at}; {again}", style="dim"))
    line = Text()
    for key, what in keys_of(state, unicode):
        line.append(key, style="bold").append(f" {what}   ")
    line.rstrip()
    return [*lines, *_wrapped(line, width)]


def _window(state: State, body: list[Text], room: int, width: int, unicode: bool) -> list[Text]:
    """The lines of `body` that fit, from `state.offset` on, then a line with what follows them.

    If all lines of `body` fit, there is no line with what follows. Corrects `state.offset`."""
    if len(body) <= room:
        state.offset = 0
        return body
    state.offset = max(0, min(state.offset, len(body) - room + 1))
    if state.view == "list":
        state.offset = max(0, min(state.selected - 1, len(body) - room + 1))
    shown = body[state.offset : state.offset + room - 1]
    left = len(body) - state.offset - len(shown)
    down, up = ("↓", "↑") if unicode else ("down", "up")
    told = f"... {counted(left, 'more line')} ({down})" if left else f"... the end ({up} back)"
    return [*shown, Text(told, style="dim")]


def _wrapped(text: Text, width: int) -> list[Text]:
    """The text in lines of at most `width` cells, which are cut between words if possible."""
    from rich.console import Console

    lines = list(text.wrap(Console(width=width), max(1, width), overflow="fold"))
    for line in lines:
        line.rstrip()
    return lines or [Text()]


def _cut(line: Text, width: int, unicode: bool) -> Text:
    if line.cell_len <= width:
        return line
    mark_of_cut = "…" if unicode else "..."
    if not line.spans:
        return Text(crop(line.plain, width, ellipsis=mark_of_cut), style=line.style)
    line = line.copy()
    line.truncate(max(0, width - len(mark_of_cut)), overflow="crop")
    line.append(mark_of_cut[:width])
    return line
