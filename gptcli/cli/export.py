"""`gptcli export`: writes a trained model for other programs, and proves the export."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, cast

import typer

from gptcli.cli.options import CheckpointOption, JsonOption, ModelOptions, RunArgument, load_model
from gptcli.cli.output import print_json
from gptcli.cli.run_argument import named_run
from gptcli.errors import GptcliError, nearest
from gptcli.files.paths import expanded, refuse_existing, shell_word
from gptcli.view.waiting import waiting

TYPES = ("f32", "f16", "bf16", "q8_0")
FORMATS = ("huggingface", "gguf", "onnx")
_ALIASES = {
    "hf": "huggingface",
    "hugging-face": "huggingface",
    "transformers": "huggingface",
    "llama.cpp": "gguf",
    "onnxruntime": "onnx",
    "transformers.js": "onnx",
}


def export(
    run: RunArgument = None,
    to: Annotated[
        str,
        typer.Option(
            "--to",
            metavar="FORMAT",
            help="huggingface: a folder for transformers. gguf: a file for llama.cpp. "
            "onnx: a folder for onnxruntime.",
        ),
    ] = "huggingface",
    type_name: Annotated[
        str | None,
        typer.Option(
            "--type",
            metavar="TYPE",
            help="Number format of the matrices in gguf: f32 (default), f16, bf16, q8_0.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="PATH",
            help="The file or folder to write. Default: RUN-FORMAT in this folder; for gguf "
            "RUN-TYPE.gguf.",
        ),
    ] = None,
    merge: Annotated[
        bool,
        typer.Option(
            "--merge",
            help="For a run with train.lora: write one model, with the adapters merged. Default "
            "for huggingface: write the base model and an adapter for peft.",
        ),
    ] = False,
    checkpoint: CheckpointOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a trained model in the format of another program.

    gptcli proves the export if the other program's library is installed: the library reads the
    files, and gptcli compares its logits and token ids with the model's. Files that give other
    results are deleted."""
    format = _ALIASES.get(to.lower(), to.lower())
    if format not in FORMATS:
        close = nearest(format, FORMATS)
        raise GptcliError(
            f"--to `{to}` is not a format that gptcli writes",
            f"did you mean `{close}`?" if close else f"the formats are: {', '.join(FORMATS)}",
        )
    if type_name is not None and format != "gguf":
        raise GptcliError(f"--type has no effect with --to {format}", "leave --type out")
    if type_name is not None and type_name.lower() not in TYPES:
        raise GptcliError(f"--type `{type_name}` is unknown", f"the types are: {', '.join(TYPES)}")
    type_name = (type_name or "f32").lower()
    if format in ("gguf", "onnx") and find_spec(format) is None:
        raise GptcliError(
            f"--to {format} needs the package {format}, which is not installed",
            f"pip install {format}",
        )
    folder = named_run(run, "export")
    name = folder.resolve().name
    default = f"{name}-{type_name}.gguf" if format == "gguf" else f"{name}-{format}"
    path = expanded(out) if out is not None else Path(default)
    refuse_existing(path)
    _refuse_user_parts(folder)
    if merge:
        _refuse_without_adapters(folder)
    with waiting("loading the model"):
        options = ModelOptions(checkpoint=checkpoint, device="cpu", dtype="float32")
        trained = load_model(str(folder), options, "export", dtype_of_run=False)
    from gptcli.interop import export as exporting
    from gptcli.interop.model_card import proof_sentence

    with waiting("writing and proving the export"):
        done = exporting.export(
            trained, cast(exporting.Format, format), path, type_name, merge=merge
        )
    if as_json:
        print_json(
            {
                "format": done.format,
                "path": str(done.path),
                "files": list(done.files),
                "proven": done.proof.largest_difference is not None,
                "largest_difference": done.proof.largest_difference,
                "not_expressible": list(done.not_expressible),
                "checkpoint": trained.step,
            }
        )
        return
    files = f": {', '.join(done.files)}" if format != "gguf" else ""
    typer.echo(f"wrote {shell_word(done.path)}{files}")
    typer.echo(proof_sentence(done.proof))
    for sentence in done.not_expressible:
        typer.echo(sentence)


def _refuse_user_parts(run: Path) -> None:
    """Raise GptcliError if a run was trained with parts that the user wrote."""
    from gptcli.model.user_parts import parts_of
    from gptcli.training.run_folder import read_status

    if parts := parts_of(read_status(run)):
        raise GptcliError(
            f"{run} was trained with your own {', '.join(parts)}, which other programs do not have",
            "only models of builtin parts can be exported",
            exit_code=1,
        )


def _refuse_without_adapters(run: Path) -> None:
    """Raise GptcliError if a run has no adapters to merge."""
    from gptcli.training.run_folder import read_config

    if read_config(run).train.lora is None:
        raise GptcliError(
            f"--merge is for a run with train.lora, and {run} has no adapters", "leave --merge out"
        )
