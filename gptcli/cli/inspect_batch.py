"""`gptcli inspect-batch`: shows the text of the training batch of a step."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gptcli.api.user_files import UserFiles, load_user_parts
from gptcli.cli.options import JsonOption, others_and_overrides, with_overrides
from gptcli.cli.output import note, print_json
from gptcli.cli.run_argument import named_run
from gptcli.cli.user_files import TokenizerOption
from gptcli.errors import GptcliError, cropped
from gptcli.files.paths import shell_word
from gptcli.plurals import agreeing, counted

if TYPE_CHECKING:
    from gptcli.config import Config
    from gptcli.corpus import Corpus


def inspect_batch(
    run: Annotated[
        str, typer.Argument(metavar="RUN", help="A run folder, or its name under runs/.")
    ],
    step: Annotated[
        int,
        typer.Argument(
            metavar="STEP", help="The number of a step, as in metrics.jsonl; the first step is 1."
        ),
    ],
    source: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[data.source=NEW] [data.val_source=NEW]",
            help="Where the run's text is now, if the text has moved.",
        ),
    ] = None,
    as_json: JsonOption = False,
    tokenizer: TokenizerOption = None,
) -> None:
    """Show the text of the training batch of a step.

    The loss of the step was computed on this batch. The batch depends only on the text, the config
    and the step, so gptcli trains nothing. Each sequence is shown with one more token, which its
    last position predicts."""
    from gptcli.training import run_folder

    path = named_run(run, "inspect-batch")
    config = run_folder.read_config(path)
    last = config.train.max_steps
    if not 1 <= step <= last:
        raise GptcliError(
            f"step {step} is not one of the steps 1 to {last} of {path}",
            "metrics.jsonl lists the logged steps with their losses",
        )
    others, overrides = others_and_overrides(source)
    if others:
        raise GptcliError(
            f"`{cropped(others[0])}`: one word too many",
            "write gptcli inspect-batch RUN STEP [data.source=NEW] [data.val_source=NEW]",
        )
    corpus = _text_of(path, config, UserFiles(tokenizer=tokenizer), step, overrides)
    rows = _sequences(config, corpus, step)
    loss = _loss_at(path, step)
    if as_json:
        for row in rows:
            print_json({"step": step, "loss": loss, **row})
        return
    from gptcli.view.safe_text import clean

    train = config.train
    loss_text = "" if loss is None else f", loss {loss:.4f}"
    length = config.model.block_size
    lines = [
        f"step {step}: {counted(len(rows), 'sequence')} of {length} "
        f"{agreeing(length, 'token')}{loss_text}; "
        f"epoch {rows[0]['epoch']:.2f}"
    ]
    for row in rows:
        part = f", micro-batch {row['micro_batch']}" if train.grad_accum > 1 else ""
        whose = f" of {row['source']}" if "source" in row else ""
        lines += [
            "",
            f"--- sequence {row['sequence']}{part}{whose}, from token {row['start']:,} of "
            f"{len(corpus.train):,}",
            row["text"],
        ]
    sys.stdout.write(clean("\n".join(lines), sys.stdout.encoding or "utf-8") + "\n")


def _text_of(
    run: Path, config: Config, files: UserFiles, step: int, overrides: list[str]
) -> Corpus:
    """The text that the run was trained on, as token ids of the run's tokenizer.

    Raises GptcliError if the text has changed, or if the run was trained with the user's tokenizer
    but the command line does not name the file of this tokenizer."""
    from gptcli.config_files import values_set
    from gptcli.model.user_parts import parts_of, refuse_other_parts
    from gptcli.training.consistency import same_tokenizer
    from gptcli.training.opening_text import open_text_of_run
    from gptcli.training.run_folder import read_status, read_tokenizer
    from gptcli.training.text_of_run import (
        TEXT_KEYS,
        WantedText,
        content_key_of,
        remember_source,
    )

    meta = _some_meta(run)
    parts = parts_of(read_status(run) if meta is None else meta)
    user_parts = load_user_parts(files)
    # Only the user's tokenizer is needed, because the other parts do not change the batches.
    refuse_other_parts(run, tuple(part for part in parts if part == "tokenizer"), user_parts)
    tokenizer = read_tokenizer(run, user_parts.tokenizer if user_parts is not None else None)
    if meta is not None:
        same_tokenizer(run, tokenizer, meta)
    key = content_key_of(run, meta)
    corpus, found = open_text_of_run(
        WantedText(
            run,
            key,
            named=TEXT_KEYS & set(values_set(overrides)),
            command=f"gptcli inspect-batch {shell_word(run)} {step}",
            other_text="a batch can be shown only from the text that the run was trained on",
        ),
        with_overrides(run, config, overrides),
        tokenizer,
    )
    if key is None:
        note(f"{run} has no checkpoint that records its text, so this is the text as it is now")
    elif overrides and (remembered := remember_source(run, config, found.data)):
        note(remembered)
    return corpus


def _some_meta(run: Path) -> dict[str, Any] | None:
    """The meta.json of the newest checkpoint whose meta.json is readable; None if there is none."""
    from gptcli.training import checkpoint

    for step in reversed(checkpoint.steps_of(run)):
        try:
            return checkpoint.read_meta(run, step)
        except GptcliError as error:
            note(f"{error.message}; skipped")
    return None


def _sequences(config: Config, corpus: Corpus, step: int) -> list[dict[str, Any]]:
    """The sequences of a step as JSON objects, in the order in which training reads them."""
    from gptcli.corpus import Batches

    train = config.train
    batches = Batches(corpus.train, config.model.block_size, train.rows, train.seed)
    rows: list[dict[str, Any]] = []
    shares = config.data.shares
    for part in range(train.grad_accum):
        k = (step - 1) * train.grad_accum + part
        inputs, targets = batches.batch(k)
        places = zip(inputs, targets, batches.starts(k), batches.texts_of(k), strict=True)
        for idx, target, start, text in places:
            ids = [*idx.tolist(), int(target[-1])]
            mixed = {} if shares is None else {"source": config.data.short_names[text]}
            rows.append(
                {
                    "sequence": len(rows) + 1,
                    "micro_batch": part + 1,
                    "epoch": batches.epoch_of(k),
                    "start": start,
                    **mixed,
                    "ids": ids,
                    "text": corpus.tokenizer.decode(ids),
                }
            )
    return rows


def _loss_at(run: Path, step: int) -> float | None:
    """The loss of a step according to metrics.jsonl; None if the step was not logged."""
    import json

    from gptcli.files.bounded import read_lines
    from gptcli.training.journal import cannot_open_error

    path = run / "metrics.jsonl"
    try:
        for line in read_lines(path, run):
            try:
                record = json.loads(line)
                if (record["kind"], record["step"]) == ("step", step):
                    return float(record["loss"])
            except (ValueError, KeyError, TypeError, RecursionError):
                continue
    except FileNotFoundError:
        return None
    except OSError as error:
        raise cannot_open_error(path, error) from None
    return None
