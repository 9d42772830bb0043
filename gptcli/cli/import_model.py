"""`gptcli import`: turns a model of another program into a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gptcli.cli.options import JsonOption
from gptcli.cli.output import print_json
from gptcli.errors import GptcliError
from gptcli.files.paths import expanded, shell_word
from gptcli.plurals import counted
from gptcli.view.waiting import waiting


def import_model(
    path: Annotated[
        str,
        typer.Argument(
            metavar="PATH",
            help="A Hugging Face folder, nanoGPT's ckpt.pt, a name on the Hugging Face Hub, or "
            "with --base the folder of a LoRA adapter of peft.",
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="RUN", help="The run folder. Default: runs/NAME."),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(
            "--base",
            metavar="RUN",
            help="The run of the base model, if PATH is a LoRA adapter.",
        ),
    ] = None,
    tokenizer: Annotated[
        Path | None,
        typer.Option(
            "--tokenizer",
            metavar="FILE",
            help="The model's tokenizer: a tokenizer.json or its folder, or gpt2; for a model of "
            "characters, its training text.",
        ),
    ] = None,
    block_size: Annotated[
        int | None,
        typer.Option(
            "--block-size", metavar="N", min=1, help="A shorter context length, in tokens."
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Turn a model of another program into a run.

    The commands that use a trained model, such as sample, eval, serve and train --from, can use the
    run. gptcli reads nanoGPT's ckpt.pt, and safetensors of GPT-2, dense Qwen3, Llama and Mistral.
    With --base, it reads a LoRA adapter of peft. It runs no code of the model. If gptcli would
    compute any part of the model differently, it refuses the model and names this part."""
    given = expanded(Path(path))
    is_name = path.count("/") == 1 and not path.startswith((".", "/", "~")) and not given.exists()
    if not given.exists() and not is_name:
        raise GptcliError(
            f"there is no file or folder {path}",
            "name a folder of Hugging Face, or nanoGPT's ckpt.pt",
        )
    if base is not None and (tokenizer is not None or block_size is not None):
        raise GptcliError(
            "an adapter has the tokenizer and the context of its base model",
            "leave --tokenizer and --block-size out",
        )
    from gptcli.interop import adapter_import, imports
    from gptcli.interop.adapter_folder import SETTINGS
    from gptcli.interop.tokenizers import GPT2
    from gptcli.training.run_folder import find_run, free_name

    if is_name:
        with waiting("downloading the model"):
            given = imports.from_hub(path)
    name = path.rpartition("/")[2] if is_name else _name_of(given)
    run = expanded(out) if out is not None else free_name(name)
    if out is not None:
        imports.refuse_taken(run)
    if base is None and (given / SETTINGS).is_file() and not (given / "config.json").is_file():
        raise GptcliError(
            f"{path} is a LoRA adapter, which changes another model",
            f"name its base model: gptcli import {shell_word(path)} --base RUN",
        )
    tokenizer_path = expanded(tokenizer) if tokenizer is not None else None
    if tokenizer_path not in (None, Path(GPT2)) and not tokenizer_path.exists():
        raise GptcliError(f"there is no file or folder {tokenizer}", "check the path")
    with waiting("reading and comparing the model"):
        if base is not None:
            done = adapter_import.import_adapter(
                given, find_run(base), run, name=path if is_name else None
            )
        else:
            done = imports.import_model(
                given,
                run,
                tokenizer=tokenizer_path,
                block_size=block_size,
                name=path if is_name else None,
            )
    from gptcli.interop.model_card import proof_sentence
    from gptcli.model.gpt import count_parameters

    parameters = count_parameters(done.trained.model).total
    if as_json:
        print_json(
            {
                "run": str(done.run),
                "model_type": done.model_type,
                "parameters": parameters,
                "vocab_size": done.trained.tokenizer.vocab_size,
                "proven": done.proof.largest_difference is not None,
                "largest_difference": done.proof.largest_difference,
                "notes": list(done.notes),
            }
        )
        return
    typer.echo(
        f"imported {shell_word(done.run)}: {done.model_type}, {parameters:,} parameters, "
        f"{counted(done.trained.tokenizer.vocab_size, 'token')}"
    )
    for sentence in done.notes:
        typer.echo(f"note: {sentence}")
    typer.echo(proof_sentence(done.proof, "import"))
    typer.echo(f"continue: gptcli sample {shell_word(done.run)}")


def _name_of(path: Path) -> str:
    """The name for the run: the name of `path`, or of the folder around `path` if it is a file."""
    found = path.resolve()
    return (found if found.is_dir() else found.parent).name or "imported"
