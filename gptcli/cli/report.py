"""`gptcli report`: writes a report of a run as one HTML file, or as a PDF file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gptcli.cli.options import RunArgument
from gptcli.cli.output import note
from gptcli.cli.run_argument import named_run
from gptcli.cli.user_files import TokenizerOption
from gptcli.errors import GptcliError
from gptcli.files.paths import expanded, shell_word
from gptcli.view.waiting import waiting

if TYPE_CHECKING:
    from gptcli.tokenization import Tokenizer


def report(
    run: RunArgument = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="FILE",
            help="The file to write. Default: RUN-report.html (with --pdf: .pdf) in this folder.",
        ),
    ] = None,
    pdf: Annotated[
        bool, typer.Option("--pdf", help="Write a PDF file instead (needs Chromium or Chrome).")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an existing file.")
    ] = False,
    tokenizer: TokenizerOption = None,
) -> None:
    """Write a report of a run as one HTML file.

    The report says whether the run overfit, whether more time would help, whether the training was
    stable, and what to try next. It shows the curves, the samples, the probability of each token of
    a validation passage, attention maps during the training, the machine and the config. The file
    works without the internet. The command reads only the run folder, so it also works while the
    run trains."""
    folder = named_run(run, "report")
    name = folder.resolve().name
    path = expanded(out) if out is not None else Path(f"{name}-report.{'pdf' if pdf else 'html'}")
    from gptcli.pages.chromium import pdf as as_pdf
    from gptcli.pages.chromium import refuse_without_chromium
    from gptcli.pages.written import refuse_existing, write

    refuse_existing(path, overwrite=overwrite)
    if pdf:
        refuse_without_chromium()
    with waiting("reading the run"):
        from gptcli.pages.report_page import report_page
        from gptcli.pages.run_data import read_run

        data = read_run(folder, name)
        if not data.steps and not data.evaluations:
            raise GptcliError(
                f"{folder} has no logged steps, so gptcli cannot write a report",
                "its metrics.jsonl is missing or empty, or the run was imported; `gptcli look` "
                "shows what its heads look at",
                exit_code=1,
            )
        page = report_page(data, _tokenizer(folder, tokenizer))
        write(path, as_pdf(page) if pdf else page)
    typer.echo(f"wrote {shell_word(path)} ({path.stat().st_size // 1000:,} KB)")


def _tokenizer(run: Path, spec: str | None) -> Tokenizer | None:
    """The run's tokenizer. Prints a note and returns None if the tokenizer cannot be read."""
    from gptcli.api.user_files import UserFiles, load_user_parts
    from gptcli.training.run_folder import read_tokenizer

    parts = load_user_parts(UserFiles(tokenizer=spec)) if spec is not None else None
    try:
        return read_tokenizer(run, parts.tokenizer if parts is not None else None)
    except GptcliError as error:
        note(f"note: {error.message}; the report has no passage and no attention maps")
        return None
