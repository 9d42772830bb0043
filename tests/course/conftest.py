"""The fixture `judge`, which checks files. Only one pytest worker checks them, for all workers."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path

import pytest

from gptcli.course import check_files
from gptcli.course.report import FileReport
from gptcli.errors import GptcliError
from tests.conftest import Once

Judged = dict[str, FileReport | GptcliError]
Judge = Callable[..., Judged]


@pytest.fixture(scope="session")
def judge(once: Once) -> Judge:
    """judge("name", {"file.py": text}) checks files with these texts: file name -> report.

    A file that cannot be used has a GptcliError instead of a report. Only one pytest worker checks
    the files. Calls with the same "name" get the same reports."""

    def check(name: str, texts: Mapping[str, str], limit_s: float = 30.0) -> Judged:
        def make(folder: Path) -> None:
            for file, text in texts.items():
                (folder / file).write_text(text, encoding="utf-8")
            lines = []
            found = check_files([str(folder / file) for file in texts], limit_s=limit_s)
            for result in found:
                if isinstance(result, FileReport):
                    lines.append({"report": asdict(result)})
                else:
                    lines.append({"error": [result.message, result.hint]})
            text = "\n".join(map(json.dumps, lines))
            (folder / "reports.jsonl").write_text(text, encoding="utf-8")

        folder = once(f"judged-{name}", make)
        lines = (folder / "reports.jsonl").read_text(encoding="utf-8").splitlines()
        judged: Judged = {}
        for file, line in zip(texts, lines, strict=True):
            value = json.loads(line)
            if "report" in value:
                judged[file] = FileReport.from_worker(value["report"])
            else:
                judged[file] = GptcliError(*value["error"])
        return judged

    return check
