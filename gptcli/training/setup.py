"""Prepares a run: resolves `auto`, opens the text, builds the Setup of a new or resumed run.

First reading: `resolve` and `prepare_new`. Skip `prepare_resume` (it compares the run folder with
what the user asks for now) and the functions below it.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptcli.config import Config
from gptcli.corpus import Corpus
from gptcli.corpus.standard_input import STDIN
from gptcli.devices import choose_device, choose_dtype, choose_threads, dtype_name
from gptcli.errors import GptcliError
from gptcli.files.paths import shell_word
from gptcli.model.user_parts import UserParts, parts_of, refuse_other_parts
from gptcli.training import checkpoint, run_folder
from gptcli.training.adapters import resolve_adapters
from gptcli.training.batch_size import with_fitting_batch_size
from gptcli.training.checkpoint_folders import refuse_other_link
from gptcli.training.consistency import refuse_other_network, same_config, same_tokenizer
from gptcli.training.fine_tuning import refuse_adapters, with_evaluations, with_few_steps
from gptcli.training.finished_run import FinishedRun as FinishedRun
from gptcli.training.finished_run import finished_run, reason_to_stop
from gptcli.training.kept_texts import with_kept_texts, with_stored_texts
from gptcli.training.loop import Setup
from gptcli.training.named_tokenizer import (
    follow_base_run,
    follow_tokenizer,
    refuse_other_tokenizer,
)
from gptcli.training.opening_text import open_text, open_text_of_run
from gptcli.training.other_machine import (
    changes_note,
    chosen_again,
    machine_record,
    refuse_other_machine,
)
from gptcli.training.passes import choose_compile, choose_engine
from gptcli.training.planner import NO_PLANS, PlanHistory, TimeLimit, time_left
from gptcli.training.resume_rules import config_for_resume, override_words
from gptcli.training.run_commands import resume_command, train_again_command
from gptcli.training.run_copy import RunCopy
from gptcli.training.schedule import (
    most_steps,
    resolve_eval_every,
    resolve_log_every,
    resolve_rate,
    resolve_warmup,
)
from gptcli.training.setting_notes import setting_notes
from gptcli.training.text_of_run import (
    TEXT_KEYS,
    WantedText,
    absolute_texts,
    content_key_of,
    named_texts,
    remember_source,
    text_record,
)
from gptcli.training.training_state import progress_of


@dataclass(frozen=True)
class Prepared:
    """A Setup that is ready to train, and notes for the user."""

    setup: Setup
    notes: list[str]
    copy: RunCopy | None = None
    """Copies the run to a URL (--copy-to)."""


def resolve(config: Config, corpus: Corpus, *, has_user_parts: bool = False) -> Config:
    """`config` with values in place of `auto`, chosen for the text and for this machine.

    Makes the paths of texts absolute. Lowers max_steps to what max_epochs allows. Three keys keep
    `auto`: checkpoint_every, because the Saver decides by the clock; documents, because it depends
    on the format of each file; and batch_size, which gptcli.training.batch_size resolves later."""
    train, run = config.train, config.run
    most = most_steps(config, corpus.train)
    if most is not None and most < train.max_steps:
        train = train.model_copy(update={"max_steps": most})
    device = choose_device(run.device)
    tokens_per_step = config.tokens_per_step
    compiled = choose_compile(
        config, device, corpus.tokenizer.vocab_size, has_user_parts=has_user_parts
    )
    dtype = choose_dtype(run.dtype, device)
    engine, _ = choose_engine(
        config, device, dtype, compiled=compiled, has_user_parts=has_user_parts
    )
    # A user's tokenizer is of the kind bpe, too. meta.json records that the user wrote it.
    kind = "bpe" if corpus.tokenizer.kind == "own" else corpus.tokenizer.kind
    return config.model_copy(
        update={
            "data": absolute_texts(config.data).model_copy(update={"val_split": corpus.val_split}),
            "tokenizer": config.tokenizer.model_copy(
                update={"kind": kind}  # a fine-tune takes the base run's tokenizer
                | ({"vocab_size": corpus.tokenizer.vocab_size} if kind == "bpe" else {})
            ),
            "train": train.model_copy(
                update={
                    "lora": resolve_adapters(config, corpus.tokenizer.vocab_size),
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
    """Why the C library cannot be used, as a list with one note.

    [] if it can be used, or if the user cannot fix the cause. Call this before `resolve`."""
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
    time_limit: TimeLimit | None = None,
    ranks: int = 1,
    is_short: bool = False,
) -> Prepared:
    """Create the run folder `run` and return the Setup of the new run.

    `ranks` processes share the training. With `from_run`, the run is a fine-tune: it starts from
    the best weights of `from_run`, and takes the tokenizer of `from_run`. If `is_short` is
    true, the length of the text determines the number of steps. An earlier run in the folder moves
    to RUN/.replaced (gptcli.training.run_folder). Raises GptcliError if config, text, user's parts
    and `from_run` do not fit together."""
    notes: list[str] = []
    asked = config.train.max_steps
    has_user_parts = user_parts is not None and user_parts.in_network()
    refuse_other_machine(config, has_user_parts=has_user_parts)
    weights, tokenizer = None, None
    status: dict[str, Any] = (
        {"own_parts": list(user_parts.names())} if user_parts is not None else {}
    )
    refuse_adapters(config.train, has_base=from_run is not None, has_user_parts=has_user_parts)
    if from_run is not None:
        loaded, notes = checkpoint.best_valid(from_run)
        status["started_from"] = {"run": str(from_run.absolute()), "step": loaded.step}
        _refuse_from_with_user_parts(from_run, loaded.meta, user_parts)
        config, tokenizer = follow_base_run(config, from_run)
        same_tokenizer(from_run, tokenizer, loaded.meta)
        refuse_other_network(config, from_run, loaded.meta)
        weights = loaded.model
        notes.append(
            f"starting from the weights of {from_run}, step {loaded.step}, with its tokenizer"
        )
    elif user_parts is None or user_parts.tokenizer is None:
        config, tokenizer = follow_tokenizer(config)
    elif config.tokenizer.from_ is not None:
        raise GptcliError(
            f"tokenizer.from is {config.tokenizer.from_}, so --tokenizer would have no effect",
            "leave out --tokenizer or tokenizer.from",
        )
    refuse_other_link(run)
    corpus = open_text(config, tokenizer, user_parts)
    if is_short:
        config = with_few_steps(config, len(corpus.train))
    notes += engine_notes(config, user_parts)
    status["machine"] = machine_record(config.run)
    often = from_run is not None and config.train.eval_every == "auto" and time_limit is None
    config = resolve(config, corpus, has_user_parts=has_user_parts)
    if config.train.max_steps < asked and config.train.max_epochs is not None:
        status["max_steps_asked"] = asked
    vocab_size = corpus.tokenizer.vocab_size
    config, sized = with_fitting_batch_size(config, vocab_size, user_parts, ranks)
    notes += sized
    if often:
        config = with_evaluations(config)
    if config.train.patience is not None or config.train.stop_at_val_loss is not None:
        _refuse_without_validation(corpus)
    config, kept = with_kept_texts(run, config)
    status["text"] = text_record(config.data, run, corpus.content_key)
    if (left := run_folder.link_to_leave(run)) is not None:
        notes.append(
            f"the old checkpoints stay in {left}: {run / 'checkpoints'} was a link to that folder"
        )
    run_folder.create(run, config, corpus.tokenizer, status, kept)
    setup = _build_setup(
        run, config, corpus, user_parts=user_parts, start_from=weights, time_limit=time_limit
    )
    return Prepared(setup, [*corpus.notes, *notes, *setting_notes(config, corpus)])


def prepare_resume(
    run: Path,
    wanted: Config | None,
    *,
    extend: bool = False,
    user_parts: UserParts | None = None,
    explicit: Set[str] = frozenset(),
) -> Prepared | FinishedRun:
    """The Setup that continues a run folder, or a FinishedRun if nothing is left to do.

    `wanted` is the config that the user asks for now (None: the run's config). `explicit` has the
    keys that the command line sets. gptcli.training.resume_rules can refuse a changed key, or make
    a note about it. On another machine, gptcli.training.other_machine can choose device, dtype,
    threads, compile and engine again. Raises GptcliError if the text, the tokenizer or the user's
    parts are not those of the run."""
    stored = run_folder.read_config(run)
    saved, notes = checkpoint.newest_valid(run)
    notes = [f"{note}; it was skipped" for note in notes]
    step = saved.step if saved else 0
    history = PlanHistory.of(run, stored, saved.meta if saved else {}, step)
    status = run_folder.read_status(run)
    asked = status.get("max_steps_asked")
    config, changes = config_for_resume(
        run, stored, wanted, extend, step, explicit, history.max_steps, asked
    )
    parts = parts_of(status)
    weights = None
    if saved is None:
        notes.append(f"{run} was stopped before its first checkpoint; starting again from step 0")
        weights = _fine_tune_weights(run)
    else:
        parts = parts_of(saved.meta)
        notes += same_config(run, saved.meta, stored)
    refuse_other_parts(run, parts, user_parts)
    if config.train.minutes is None:  # no time limit, or --extend removed it
        history = NO_PLANS
    reason = reason_to_stop(saved, config, history.max_steps) if saved is not None else None
    if not explicit & TEXT_KEYS and STDIN in (*config.data.sources, *config.data.val_sources):
        # The run folder has a copy of standard input's text, and `stored` names this copy.
        config = config.model_copy(update={"data": stored.data})
    named = named_texts(stored.data, config.data) | (explicit & TEXT_KEYS)
    if saved is not None and reason is not None and not named:
        checkpoint.delete_leftovers(run, saved.step)  # leftovers of a kill after the last step
        return finished_run(run, saved, stored, config, reason, notes, history.max_steps)
    tokenizer = run_folder.read_tokenizer(
        run, user_parts.tokenizer if user_parts is not None else None
    )
    if saved is not None:
        same_tokenizer(run, tokenizer, saved.meta)
    if config.tokenizer.from_ not in (None, stored.tokenizer.from_):
        refuse_other_tokenizer(run, tokenizer, config.tokenizer.from_)
    corpus, config = open_text_of_run(
        WantedText(
            run,
            content_key_of(run, saved.meta if saved else None),
            named=named,
            command=resume_command(run, override_words(stored, config), extend=extend),
            other_text="to train on another text, start a new run from these weights: "
            f"gptcli train TEXT --from {shell_word(run)}",
        ),
        config,
        tokenizer,
    )
    refuse_other_link(run)
    config = with_stored_texts(run, stored, config)
    if saved is not None and reason is not None:  # the text has moved, but is unchanged
        remembered = remember_source(run, stored, config.data, is_locked=True)
        notes += [remembered] if remembered is not None else []
        checkpoint.delete_leftovers(run, saved.step)
        return finished_run(run, saved, stored, config, reason, notes, history.max_steps)
    notes += changes
    if config.train.patience is not None or config.train.stop_at_val_loss is not None:
        _refuse_without_validation(corpus)
    asked = {
        key for key, new in config.run.model_dump().items() if getattr(stored.run, key) != new
    } - {key for key, new in config.run.model_dump().items() if new == "auto"}
    has_user_parts = user_parts is not None and user_parts.in_network()
    config = config.model_copy(
        update={"run": chosen_again(config.run, status.get("machine"), asked)}
    )
    refuse_other_machine(config, has_user_parts=has_user_parts)
    if config.run.engine == "auto":
        notes += engine_notes(config, user_parts)
    machine = machine_record(config.run, status.get("machine"), asked)
    config = resolve(config, corpus, has_user_parts=has_user_parts)
    notes += changes_note(stored.run, config.run, asked)
    if config.data.source != stored.data.source:
        notes.append(f"the text is now read from {config.data.name}")
    checkpoint.delete_leftovers(run, saved.step if saved else -1)
    run_folder.delete_temporaries(run)
    run_folder.write_config(run, config)
    text = text_record(config.data, run, corpus.content_key)
    run_folder.write_status(run, {**status, "machine": machine, "text": text})
    setup = _build_setup(
        run,
        config,
        corpus,
        user_parts=user_parts,
        resume=saved,
        start_from=weights,
        time_limit=time_left(config, progress_of(saved.meta).seconds if saved else 0.0),
        plan_history=history,
    )
    return Prepared(setup, [*corpus.notes, *notes])


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


def _fine_tune_weights(run: Path) -> dict[str, Any] | None:
    """The weights that the fine-tune `run` starts from; None if `run` is not a fine-tune.

    `run` has no checkpoint of its own yet."""
    origin = run_folder.read_status(run).get("started_from")
    if origin is None:
        return None
    try:
        return checkpoint.load(Path(origin["run"]), int(origin["step"])).model
    except (GptcliError, KeyError, TypeError, ValueError) as error:
        why = error.message if isinstance(error, GptcliError) else "run.json is damaged"
        raise GptcliError(
            f"{run} was stopped before its first checkpoint, and the weights that it starts from "
            f"cannot be loaded: {why}",
            f"start the run again: {train_again_command(run)}",
            exit_code=1,
        ) from None


def _refuse_from_with_user_parts(
    run: Path, meta: dict[str, Any], user_parts: UserParts | None
) -> None:
    if there := parts_of(meta):
        raise GptcliError(
            f"{run} was trained with your own parts ({', '.join(there)})",
            "--from needs a run with only built-in parts",
        )
    if user_parts is not None and user_parts.tokenizer is not None:
        raise GptcliError(
            f"--from takes the tokenizer of {run}, so --tokenizer would have no effect",
            "leave out --tokenizer or --from",
        )


def _refuse_without_validation(corpus: Corpus) -> None:
    if corpus.val is None:
        raise GptcliError(
            "train.stop_at_val_loss and train.patience need a validation split, and "
            "data.val_fraction is 0",
            "set data.val_fraction=0.1",
        )
