"""Prepares a run: resolves every `auto`, opens the text, builds the Setup of a new or resumed run.

On a first reading, read `resolve` and `prepare_new`. Skip `prepare_resume` and the functions below
it: they compare the run folder with what the user asks for now.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from gptcli.config import Config
from gptcli.corpus import Corpus, OtherTextError, open_corpus
from gptcli.devices import choose_device, choose_dtype, choose_threads, dtype_name
from gptcli.errors import GptcliError
from gptcli.model.user_parts import UserParts, parts_of, refuse_other_parts
from gptcli.tokenization import Tokenizer
from gptcli.training import checkpoint, run_folder
from gptcli.training.consistency import other_network, same_config, same_tokenizer
from gptcli.training.loop import Setup
from gptcli.training.passes import choose_engine
from gptcli.training.resume_rules import absolute_source, config_for_resume
from gptcli.training.run_summary import progress_summary
from gptcli.training.schedule import (
    resolve_eval_every,
    resolve_log_every,
    resolve_rate,
    resolve_warmup,
)
from gptcli.training.training_state import progress_of

# torch.compile takes about a minute on a GPU, so a run must last much longer to gain from it.
_COMPILE_FROM_TOKENS = 50_000_000


@dataclass(frozen=True)
class Prepared:
    """A Setup that can start, and notes for the user."""

    setup: Setup
    notes: list[str]


@dataclass(frozen=True)
class FinishedRun:
    """A finished run: how it ended, with the keys of `train --json`, and notes for the user."""

    status: dict[str, Any]
    notes: list[str]


def open_text(
    config: Config,
    tokenizer: Tokenizer | None = None,
    user_parts: UserParts | None = None,
    *,
    content_key: str | None = None,
) -> Corpus:
    """The corpus of a config.

    The tokenizer is `tokenizer` if given, else the user's, else one of the config's kind. With
    `content_key`, raises OtherTextError if the text has another one."""
    return open_corpus(
        config.data.source,
        kind=config.tokenizer.kind,
        vocab_size=config.tokenizer.vocab_size,
        val_fraction=config.data.val_fraction,
        block_size=config.model.block_size,
        tokenizer=tokenizer,
        user_tokenizer=user_parts.tokenizer if user_parts is not None else None,
        content_key=content_key,
    )


def open_text_of_run(
    run: Path, config: Config, tokenizer: Tokenizer, content_key: str | None, hint: str
) -> Corpus:
    """The text of a run. None as `content_key`: the run has not recorded its text.

    Raises GptcliError before the text is encoded if it has changed: else the first error would be
    about characters that the tokenizer does not know."""
    try:
        return open_text(config, tokenizer, content_key=content_key)
    except OtherTextError as error:
        what, hint = error.line_ends or ("", hint)
        raise GptcliError(
            f"the text of {config.data.source} has changed since the run {run} began"
            + (f", but {what}" if what else ""),
            hint,
        ) from None


def resolve(config: Config, corpus: Corpus, *, has_user_parts: bool = False) -> Config:
    """The config with every `auto` replaced by a value for this text and machine.

    Only checkpoint_every keeps its `auto`: the Saver decides by the clock."""
    train, run = config.train, config.run
    device = choose_device(run.device)
    tokens_per_step = config.tokens_per_step
    compiled = run.compile
    if compiled == "auto":
        compiled = (
            device.type == "cuda"
            and find_spec("triton") is not None  # torch.compile needs it; Windows has none
            and not has_user_parts
            and tokens_per_step * train.max_steps >= _COMPILE_FROM_TOKENS
        )
    dtype = choose_dtype(run.dtype, device)
    engine, _ = choose_engine(
        config, device, dtype, compiled=compiled, has_user_parts=has_user_parts
    )
    # A user's tokenizer is a bpe as well; meta.json records that the user wrote it.
    kind = "bpe" if corpus.tokenizer.kind == "own" else corpus.tokenizer.kind
    return config.model_copy(
        update={
            "data": config.data.model_copy(update={"source": absolute_source(config.data.source)}),
            "tokenizer": config.tokenizer.model_copy(
                update={"kind": kind}  # a fine-tune takes the other run's tokenizer
                | ({"vocab_size": corpus.tokenizer.vocab_size} if kind == "bpe" else {})
            ),
            "train": train.model_copy(
                update={
                    "learning_rate": resolve_rate(train, config.model.n_embd),
                    "warmup_steps": resolve_warmup(train),
                    "log_every": resolve_log_every(train),
                    "eval_every": resolve_eval_every(
                        train, len(corpus.val) if corpus.val else 0, tokens_per_step
                    ),
                }
            ),
            "run": run.model_copy(
                update={
                    "device": device.type,
                    "dtype": dtype_name(dtype),
                    "compile": compiled,
                    "engine": engine,
                    "threads": choose_threads(run.threads),
                }
            ),
        }
    )


def engine_notes(config: Config, user_parts: UserParts | None) -> list[str]:
    """A note for the user that says why the C library cannot be used here; [] if it can be used.

    Call it before `resolve`."""
    device = choose_device(config.run.device)
    _, note = choose_engine(
        config,
        device,
        choose_dtype(config.run.dtype, device),
        compiled=config.run.compile is True,
        has_user_parts=user_parts is not None and user_parts.in_network(),
    )
    return [note] if note else []


def prepare_new(
    config: Config,
    run: Path,
    *,
    from_run: Path | None = None,
    user_parts: UserParts | None = None,
) -> Prepared:
    """Create the run folder `run` and return the Setup of the new run.

    With `from_run` the run is a fine-tune: it starts from that run's best weights and takes its
    tokenizer. An earlier run in the folder moves to RUN/.replaced (gptcli.training.run_folder).
    Raises GptcliError if config, text, user's parts and `from_run` do not fit together."""
    notes: list[str] = []
    weights, tokenizer = None, None
    status: dict[str, Any] = (
        {"own_parts": list(user_parts.names())} if user_parts is not None else {}
    )
    if from_run is not None:
        loaded, notes = checkpoint.best_valid(from_run)
        status["started_from"] = {"run": str(from_run.absolute()), "step": loaded.step}
        _refuse_from_with_user_parts(from_run, loaded.meta, user_parts)
        tokenizer = run_folder.read_tokenizer(from_run)
        same_tokenizer(from_run, tokenizer, loaded.meta)
        _refuse_other_network(config, from_run, loaded.meta)
        weights = loaded.model
        notes.append(
            f"starting from the weights of {from_run}, step {loaded.step}, with its tokenizer"
        )
    corpus = open_text(config, tokenizer, user_parts)
    notes += engine_notes(config, user_parts)
    config = resolve(
        config, corpus, has_user_parts=user_parts is not None and user_parts.in_network()
    )
    if config.train.patience is not None or config.train.stop_at_val_loss is not None:
        _refuse_without_validation(corpus)
    run_folder.create(run, config, corpus.tokenizer, status)
    setup = _build_setup(run, config, corpus, user_parts=user_parts, start_from=weights)
    return Prepared(setup, [*corpus.notes, *notes])


def prepare_resume(
    run: Path,
    wanted: Config | None,
    *,
    extend: bool = False,
    user_parts: UserParts | None = None,
) -> Prepared | FinishedRun:
    """The Setup that continues a run folder, or a FinishedRun if nothing is left to do.

    `wanted` is the config that the user asks for now (None: the run's config). A changed key is
    refused, noted, or allowed with `extend`: see gptcli.training.resume_rules.
    Raises GptcliError if the text, the tokenizer or the user's parts are not those of the run."""
    stored = run_folder.read_config(run)
    saved, notes = checkpoint.newest_valid(run)
    notes = [f"{note}; it was skipped" for note in notes]
    step = saved.step if saved else 0
    config, more = config_for_resume(stored, wanted, extend, step)
    notes += more
    parts = parts_of(run_folder.read_status(run))
    weights = None
    if saved is None:
        notes.append(f"{run} was stopped before its first checkpoint; starting again from step 0")
        weights = _fine_tune_weights(run)
    else:
        parts = parts_of(saved.meta)
        notes += same_config(run, saved.meta, stored)
    refuse_other_parts(run, parts, user_parts)
    finished = saved is not None and _is_finished(run, saved, config, stored)
    if saved is not None and finished and config.data.source == stored.data.source:
        checkpoint.delete_leftovers(run, saved.step)  # left if a kill came after the last step
        return FinishedRun(_status_of_finished(run, saved), notes)
    tokenizer = run_folder.read_tokenizer(
        run, user_parts.tokenizer if user_parts is not None else None
    )
    if saved is not None:
        same_tokenizer(run, tokenizer, saved.meta)
    corpus = open_text_of_run(
        run,
        config,
        tokenizer,
        saved.meta.get("data", "") if saved is not None else None,
        "restore the old text, or start a new run from these weights: --from",
    )
    if saved is not None and finished:  # the text moved, but is the same
        checkpoint.delete_leftovers(run, saved.step)
        return FinishedRun(_status_of_finished(run, saved), notes)
    if config.train.patience is not None or config.train.stop_at_val_loss is not None:
        _refuse_without_validation(corpus)
    was_native = config.run.engine == stored.run.engine == "native"
    if was_native:  # the C library was chosen when the run began, perhaps on another machine
        config = config.model_copy(update={"run": config.run.model_copy(update={"engine": "auto"})})
        notes += engine_notes(config, user_parts)
    config = resolve(
        config, corpus, has_user_parts=user_parts is not None and user_parts.in_network()
    )
    if was_native and config.run.engine != "native":
        notes.append(
            "run.engine is now torch, because native cannot be used here: numbers will round "
            "differently from now on"
        )
    checkpoint.delete_leftovers(run, saved.step if saved else -1)
    run_folder.delete_temporaries(run)
    run_folder.write_config(run, config)
    setup = _build_setup(
        run, config, corpus, user_parts=user_parts, resume=saved, start_from=weights
    )
    return Prepared(setup, [*corpus.notes, *notes])


def _status_of_finished(run: Path, saved: checkpoint.Checkpoint) -> dict[str, Any]:
    """How a finished run ended: from run.json, or from the checkpoint if run.json does not say."""
    status = run_folder.read_status(run)
    if "stopped" not in status:
        status |= {"run": str(run), **progress_summary(progress_of(saved.meta), "done")}
    return {**status, "resumed_from": saved.step}


def _build_setup(run: Path, config: Config, corpus: Corpus, **rest: Any) -> Setup:
    device = choose_device(config.run.device)
    threads = config.run.threads
    assert threads != "auto"
    return Setup(
        run=run,
        config=config,
        corpus=corpus,
        device=device,
        dtype=choose_dtype(config.run.dtype, device),
        threads=threads,
        compile=config.run.compile is True,
        engine="native" if config.run.engine == "native" else "torch",
        **rest,
    )


def _is_finished(run: Path, saved: checkpoint.Checkpoint, config: Config, stored: Config) -> bool:
    """Whether a run is finished: by `max_steps`, `stop_at_val_loss` or `patience`.

    A run with all its steps is unfinished if the last step's evaluation or sample is missing."""
    if config.train.max_steps > stored.train.max_steps:
        return False
    if saved.step >= config.train.max_steps:
        progress, every = saved.meta.get("progress", {}), config.train.sample_every
        evaluated = progress.get("evaluated_at") == saved.step or config.data.val_fraction == 0
        sampled = not every or saved.step % every or progress.get("sampled_at") == saved.step
        return bool(evaluated and sampled)
    status = run_folder.read_status(run)
    if status.get("steps") != saved.step:  # the last checkpoint is damaged
        return False
    stopped = status.get("stopped")
    same_target = config.train.stop_at_val_loss == stored.train.stop_at_val_loss
    same_patience = config.train.patience == stored.train.patience
    return (stopped == "target" and same_target) or (stopped == "patience" and same_patience)


def _refuse_other_network(config: Config, run: Path, meta: dict[str, Any]) -> None:
    """Raise GptcliError if a fine-tune's network differs from the other run's (except dropout)."""
    odd = other_network(config, meta)
    if odd:
        raise GptcliError(
            f"the config's network differs from the network of {run}: " + ", ".join(odd),
            "leave CONFIG out to take that run's config, or set these keys to its values",
        )


def _fine_tune_weights(run: Path) -> dict[str, Any] | None:
    """The weights that a fine-tune without a checkpoint starts from; None if the run is none."""
    origin = run_folder.read_status(run).get("started_from")
    if origin is None:
        return None
    try:
        return checkpoint.load(Path(origin["run"]), int(origin["step"])).model
    except (GptcliError, KeyError, TypeError, ValueError) as error:
        why = error.message if isinstance(error, GptcliError) else "run.json is damaged"
        raise GptcliError(
            f"{run} was stopped before its first checkpoint, and the weights that it starts from "
            f"are gone: {why}",
            "start it again with --from RUN --overwrite",
            exit_code=1,
        ) from None


def _refuse_from_with_user_parts(
    run: Path, meta: dict[str, Any], user_parts: UserParts | None
) -> None:
    if there := parts_of(meta):
        raise GptcliError(
            f"{run} was trained with your own parts ({', '.join(there)})",
            "--from needs a run whose parts are all built in",
        )
    if user_parts is not None and user_parts.tokenizer is not None:
        raise GptcliError(
            f"--from takes the tokenizer of {run}, so --tokenizer would have no effect",
            "leave one of the two out",
        )


def _refuse_without_validation(corpus: Corpus) -> None:
    if corpus.val is None:
        raise GptcliError(
            "train.stop_at_val_loss and train.patience need a validation split, and "
            "data.val_fraction is 0",
            "set data.val_fraction=0.1",
        )
