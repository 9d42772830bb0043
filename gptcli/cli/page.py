"""`gptcli page`: writes a model as one HTML file that runs in a browser, and tests the file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gptcli.cli.options import CheckpointOption, JsonOption, ModelOptions, RunArgument, load_model
from gptcli.cli.output import note, print_json
from gptcli.cli.run_argument import named_run
from gptcli.errors import GptcliError
from gptcli.files.paths import expanded, shell_word
from gptcli.view.waiting import waiting


def page(
    run: RunArgument = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="FILE", help="The file to write. Default: RUN.html in this folder."
        ),
    ] = None,
    checkpoint: CheckpointOption = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an existing file.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Write a model as one HTML file for any browser.

    In the page, the model continues your text. The page also shows the attention of every head, the
    eight steps of attention with their numbers, how the guess forms layer by layer, and how the
    model learned. The file holds the weights in eight bits, the tokenizer and the program, and
    works without the internet.

    gptcli tests the page before it writes the file. Node.js or Chromium runs the page's JavaScript
    if one of them is installed; otherwise numpy does the same arithmetic. If the page's results
    differ from the model's, gptcli does not write the file."""
    from gptcli.pages.written import refuse_existing

    folder = named_run(run, "page")
    _refuse_user_parts(folder)
    path = expanded(out) if out is not None else Path(f"{folder.resolve().name}.html")
    refuse_existing(path, overwrite=overwrite)
    with waiting("loading the model") as say:
        options = ModelOptions(checkpoint=checkpoint, device="cpu", dtype="float32")
        trained = load_model(str(folder), options, "page", dtype_of_run=False)
        from gptcli.pages.model_page import page as pages
        from gptcli.pages.model_page.programs import find_program
        from gptcli.pages.model_page.story import file_size

        written = pages.write_page(trained, path, find_program(), say)
    for line in written.notes:
        note(f"note: {line}")
    proven, rounding = written.proof, written.rounding
    if as_json:
        print_json(
            {
                "path": str(written.path),
                "bytes": written.size,
                "proven_by": proven.how,
                "program": proven.program,
                "prompts": proven.prompts,
                "largest_difference": proven.largest_difference,
                "loss": rounding.loss,
                "rounded_loss": rounding.rounded_loss,
                "checkpoint": trained.step,
            }
        )
        return
    typer.echo(f"wrote {shell_word(written.path)}: {file_size(written.size)}")
    typer.echo(pages.proof_sentence(proven))
    typer.echo(pages.rounding_sentence(rounding, written.compared_on))


def _refuse_user_parts(run: Path) -> None:
    """Raise GptcliError if a run was trained with the user's parts."""
    from gptcli.model.user_parts import parts_of
    from gptcli.training.run_folder import read_status

    if parts := parts_of(read_status(run)):
        raise GptcliError(
            f"{run} was trained with your own {', '.join(parts)}, which a page cannot run",
            "only models of builtin parts can become a page",
            exit_code=1,
        )
