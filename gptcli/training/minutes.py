"""Chooses settings and steps for a text, a machine and a time: `train TEXT`, `--minutes M`.

gptcli.training.choice has the rules. This file measures the machine, reads the text, and plans the
number of steps. During the run, gptcli.training.planner corrects this number.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Set
from typing import Any

from gptcli.config import Config, TrainConfig
from gptcli.config_problems import flatten
from gptcli.corpus.encoding import characters
from gptcli.corpus.mixture import times_read
from gptcli.corpus.reading import Piece
from gptcli.corpus.shard_corpus import refuse_shards
from gptcli.corpus.sources import find_source
from gptcli.devices import choose_device, choose_dtype, choose_threads
from gptcli.errors import GptcliError, is_out_of_memory
from gptcli.fitting_values import fitting_values
from gptcli.model.user_parts import UserParts
from gptcli.plurals import agreeing, times
from gptcli.tokenization import Tokenizer
from gptcli.training.batch_size import with_fitting_batch_size
from gptcli.training.choice import (
    PATIENCE,
    Text,
    average_for,
    block_parameters,
    choose_settings,
    decay_for,
    dropout_for,
)
from gptcli.training.cost import matrix_parameters
from gptcli.training.estimate import StepTime, measured_step
from gptcli.training.named_tokenizer import follow_tokenizer
from gptcli.training.opening_text import open_text
from gptcli.training.passes import choose_engine
from gptcli.training.planner import SECONDS_AT_END, TimeLimit
from gptcli.training.schedule import most_steps
from gptcli.training.setup import resolve

CHOSEN_AFTER_STEPS = frozenset(
    {"model.dropout", "train.average", "train.decay_fraction", "train.sample_every"}
)
"""The keys that `fit_to_minutes` can choose, because their values depend on the number of steps."""
_SHOWN_TRAIN_KEYS = (
    "batch_size", "max_steps", "max_epochs", "minutes", "patience", "average", "decay_fraction",
    "sample_every",
)  # fmt: skip
_OVERFIT_EPOCHS = 100.0
_REFERENCE = (4, 128, 256, 8)  # n_layer, n_embd, T, B of the step that measures the machine's speed
_MEASURED_VOCABULARY = 96  # vocabulary of the networks whose speed is measured
_MOST_CHOICES, _SAME_SPEED = 3, 0.85
_SAVE_SECONDS = 0.15  # for the checkpoint after an evaluation
_MIN_STEPS = 20
_SAMPLES = 5
_QUIET_SHARE = 0.9  # if a thread gets less of its core, other programs are running
_THREADS_GAIN = 0.8  # T threads are about T ** 0.8 times as fast as one


def choose_for_text(
    config: Config, asked: set[str], minutes: float
) -> tuple[Config, dict[str, str]]:
    """`config` with settings that suit its text and this machine, and the reason for each section.

    `config` has the defaults and the values that the user set. `asked` has the dotted keys that the
    user set. Sets patience only if there is a validation split and the user set neither patience
    nor the number of steps."""
    config, named = follow_tokenizer(config)
    if named is not None:
        asked = asked | {"tokenizer.kind", "tokenizer.vocab_size"}
    given = {key: value for key, value in _flat(config).items() if key in asked}
    text = text_facts(config)
    seconds = 60.0 * minutes
    operations = _operations(config, asked, seconds)
    for _ in range(_MOST_CHOICES):
        chosen = choose_settings(operations, text, given, seconds, config.data.held_out)
        values = dict(chosen.values)
        values |= fitting_values(_flat(config) | values, asked)
        if asked >= {"model.n_layer", "model.n_embd"}:
            break
        # A small network does fewer operations in a second than a large one, because much of its
        # time does not depend on its size. So measure the chosen network, too.
        try:
            slower = _operations_with(with_values(config, values), seconds)
        except Exception as error:
            # The model does not fit in memory. The training, or a dry run, reports its size.
            if isinstance(error, GptcliError) or is_out_of_memory(error):
                break
            raise
        if slower > _SAME_SPEED * operations:
            break
        operations = slower
    if "train.max_steps" not in asked and config.data.validates:
        values |= {"train.patience": PATIENCE} if "train.patience" not in asked else {}
    return with_values(config, values), chosen.reasons


def fit_to_minutes(
    config: Config,
    minutes: float,
    begun: float,
    user_parts: UserParts | None,
    choose: Set[str],
    *,
    is_strict: bool,
    ranks: int = 1,
    tokenizer: Tokenizer | None = None,
) -> tuple[Config, TimeLimit, str]:
    """The config with as many steps as fit into `minutes`; also the TimeLimit, and a reason.

    The reason says why the run has this number of steps. The command is to end `minutes` after
    `begun`, which is a value of time.perf_counter(). Also chooses the values of the keys in
    `choose`. model.dropout, train.average and train.decay_fraction depend on the number of epochs,
    and train.sample_every depends on the number of steps. `ranks` processes share the training.
    `tokenizer` is the base run's tokenizer (--from). Raises GptcliError if `is_strict` and the time
    is too short for 20 steps. If the model does not fit in memory, the number of steps does not
    change, or an error is raised if `is_strict`."""
    seconds = 60.0 * minutes
    choose_threads(config.run.threads)
    limit = TimeLimit(begun + seconds - SECONDS_AT_END, seconds)
    config = with_values(config, {"train.minutes": minutes})
    if tokenizer is None:
        config, _ = follow_tokenizer(config)
    corpus = open_text(config, tokenizer, user_parts)
    has_user_parts = user_parts is not None and user_parts.in_network()
    sized, notes = with_fitting_batch_size(
        resolve(config, corpus, has_user_parts=has_user_parts),
        corpus.tokenizer.vocab_size,
        user_parts,
        ranks,
    )
    batch = {"batch_size": sized.train.batch_size, "grad_accum": sized.train.grad_accum}
    config = config.model_copy(update={"train": config.train.model_copy(update=batch)})
    try:
        step_seconds = _measure(
            resolve(config, corpus, has_user_parts=has_user_parts),
            corpus.tokenizer.vocab_size,
            user_parts,
            min(2.0, 0.04 * (limit.end - begun)),
        ).wall
    except Exception as error:
        # The model does not fit in memory. The training, or a dry run, reports its size.
        if is_strict or not (isinstance(error, GptcliError) or is_out_of_memory(error)):
            raise
        return config, limit, "the time of a step could not be measured"
    tokens_per_step = config.tokens_per_step
    val_steps = (len(corpus.val) if corpus.val else 0) / 3 / tokens_per_step
    evaluation_seconds = val_steps * step_seconds + _SAVE_SECONDS
    remaining = limit.end - time.perf_counter()
    most = most_steps(config, corpus.train)
    steps = int(remaining / step_seconds)
    steps = steps if most is None else min(steps, most)
    while steps > 0:
        candidate = with_values(config, {"train.max_steps": steps})
        every = int(resolve(candidate, corpus, has_user_parts=has_user_parts).train.eval_every)
        over = steps * step_seconds + math.ceil(steps / every) * evaluation_seconds - remaining
        if over <= 0:
            break
        # Leaving out a step also leaves out 1 / `every` of an evaluation.
        steps -= max(1, int(over / (step_seconds + evaluation_seconds / every)))
    if steps < _MIN_STEPS and is_strict:
        passed = seconds - remaining
        raise GptcliError(
            f"{minutes:g} {agreeing(minutes, 'minute is', 'minutes are')} too short: preparation "
            f"took {passed:.0f} s, and a step takes {step_seconds:.2g} s on this machine",
            f"--minutes {math.ceil(passed / 20 + _MIN_STEPS * step_seconds / 10) / 2:g}",
        )
    steps = max(1, steps)
    candidate = with_values(config, {"train.max_steps": steps})
    epochs = times_read(corpus.train, steps * tokens_per_step)
    values: dict[str, Any] = {
        "model.dropout": dropout_for(epochs),
        "train.average": average_for(epochs),
        "train.decay_fraction": decay_for(epochs),
        "train.sample_every": max(1, steps // _SAMPLES),
    }
    candidate = with_values(candidate, {key: values[key] for key in values if key in choose})
    compiled = resolve(candidate, corpus, has_user_parts=has_user_parts).run.compile
    uncompiled = " without torch.compile" if compiled else ""  # as `_measure` measures it
    often = times(f"{epochs:,.3g}")
    why = f"{1e3 * step_seconds:.3g} ms a step{uncompiled}; the text is read {often}"
    if epochs > _OVERFIT_EPOCHS and config.train.patience is None:
        why += ", so the model will overfit: more text helps more than more time"
    if steps == most:
        why += "; train.max_epochs allows no more epochs"
    why = "; ".join([why, *notes])
    return candidate, limit, why


def text_facts(config: Config) -> Text:
    """How many characters, bytes and distinct characters the config's texts have.

    Reads all texts."""
    refuse_shards(config.data)
    source = find_source(config.data)
    count = size = 0

    def counted() -> Iterator[Piece]:
        nonlocal count, size
        for piece in source.pieces():
            count += len(piece.text)
            size += len(piece.text) if piece.text.isascii() else len(piece.text.encode("utf-8"))
            yield piece

    different = len(set("".join(characters(counted()))))
    return Text(count, size, different)


def block_of_choice(config: Config, reasons: dict[str, str]) -> list[str]:
    """The chosen settings as YAML. Each section in `reasons` is one line with a reason."""
    shown = (
        ("data", ("val_fraction",) if "data" in reasons else ()),
        ("tokenizer", ("kind", *(["vocab_size"] if config.tokenizer.kind == "bpe" else []))),
        ("model", ("n_layer", "n_head", "n_embd", "block_size", "dropout")),
        ("train", _SHOWN_TRAIN_KEYS),
    )
    tree = config.model_dump()
    lines = []
    for section, names in shown:
        values = {name: tree[section][name] for name in names if tree[section][name] is not None}
        for key in ("average", "decay_fraction"):
            if values.get(key) == getattr(TrainConfig(), key):
                del values[key]
        if section in reasons:
            text = ", ".join(f"{name}: {_yaml(value)}" for name, value in values.items())
            lines.append(f"{section}: {{{text}}}  # {reasons[section]}")
    return lines


def _yaml(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _operations(config: Config, asked: set[str], seconds: float) -> float:
    """How many operations the run does: 6 * parameters of the blocks * tokens of all steps.

    If the user set the steps and the network, these give the number. If not, it is the number of
    operations that this machine can do in about `seconds` without other programs."""
    model = config.model
    if asked >= {"train.max_steps", "model.n_layer", "model.n_embd"}:
        steps = config.train.max_steps * config.tokens_per_step
        return 6 * block_parameters(model.n_layer, model.n_embd) * steps
    n_layer, n_embd, T, B = _REFERENCE
    reference = with_values(
        Config(run=config.run),
        {
            "model.n_layer": n_layer,
            "model.n_embd": n_embd,
            "model.n_head": n_embd // 64,
            "model.block_size": T,
            "train.batch_size": B,
        },
    )
    step_seconds = _quiet_step_seconds(reference, min(0.4, 0.01 * seconds), _MEASURED_VOCABULARY)
    parameters = matrix_parameters(reference, _MEASURED_VOCABULARY)
    operations_per_second = 6.0 * parameters * B * T / step_seconds
    return operations_per_second * max(1.0, 0.9 * seconds - SECONDS_AT_END)


def _operations_with(config: Config, seconds: float) -> float:
    """How many operations fit into `seconds`. Measures a step with the network of `config`."""
    vocab_size = _MEASURED_VOCABULARY
    step_seconds = _quiet_step_seconds(config, min(0.3, 0.01 * seconds), vocab_size)
    operations = 6.0 * block_parameters(config.model.n_layer, config.model.n_embd)
    steps = max(1.0, 0.9 * seconds - SECONDS_AT_END) / step_seconds
    return operations * config.tokens_per_step * steps


def _quiet_step_seconds(config: Config, seconds: float, vocab_size: int) -> float:
    """The seconds that a step takes if no other program uses the processor.

    On a CPU, measures one thread first. The thread's processor time does not depend on other
    programs. If this time is under 90 % of the wall-clock time, other programs are running. Then
    the time with all threads is estimated: one thread's time / threads ** _THREADS_GAIN. Otherwise
    the time with all threads is measured."""
    threads = choose_threads(config.run.threads)
    if choose_device(config.run.device).type != "cpu":
        return _measure(config, vocab_size, None, seconds).wall
    try:
        choose_threads(1)
        one = _measure(config, vocab_size, None, seconds)
    finally:
        choose_threads(threads)
    if threads == 1:
        return one.cpu
    if one.cpu < _QUIET_SHARE * one.wall:
        return float(one.cpu / threads**_THREADS_GAIN)
    return _measure(config, vocab_size, None, seconds).wall


def _measure(
    config: Config, vocab_size: int, user_parts: UserParts | None, seconds: float
) -> StepTime:
    """The time of a step, measured on this machine with the current number of threads."""
    device = choose_device(config.run.device)
    dtype = choose_dtype(config.run.dtype, device)
    engine, _ = choose_engine(
        config,
        device,
        dtype,
        compiled=config.run.compile is True,
        has_user_parts=user_parts is not None and user_parts.in_network(),
    )
    return measured_step(config, vocab_size, dtype, device, engine, user_parts, seconds)


def _flat(config: Config) -> dict[str, Any]:
    return {".".join(key): value for key, value in flatten(config.model_dump()).items()}


def with_values(config: Config, values: dict[str, Any]) -> Config:
    """The config with `values` (dotted key -> value).

    All other keys keep their values. They count as set (pydantic's model_fields_set) only if they
    are set in `config`. Raises ValidationError if the result is not valid."""
    tree = config.model_dump()
    sections: dict[str, set[str]] = {}
    for key, value in values.items():
        section, _, name = key.partition(".")
        tree[section][name] = value
        sections.setdefault(section, set()).add(name)
    valid = Config.model_validate(tree)
    return config.model_copy(
        update={
            section: getattr(config, section).model_copy(
                update={name: getattr(getattr(valid, section), name) for name in names}
            )
            for section, names in sections.items()
        }
    )
