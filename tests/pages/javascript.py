"""Runs functions of a page's runtime in Node.js for tests."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from gptcli.pages.model_page import programs
from gptcli.pages.model_page.runtime_files import network_script

_END = """
const asked = JSON.parse(require("fs").readFileSync(0, "utf8"));
(async () => { %s })().then((found) => console.log(JSON.stringify(found ?? null)));
"""


def node() -> programs.Program:
    """The program Node.js. Skips the test if this machine has no Node.js 18 or newer."""
    found = programs.find_program()
    if found is None or not found.name.startswith("Node.js"):
        pytest.skip("Node.js 18 or newer is not installed")
    return found


def run(code: str, asked: Any, folder: Path, *more: str) -> Any:
    """Run `code`, the body of an async JavaScript function, in Node.js, and return its result.

    The code can use the functions of the page's runtime, the functions of the scripts in `more`,
    and the value `asked`."""
    script = folder / "test.js"
    parts = ('"use strict";', network_script(), *more, _END.replace("%s", code))
    script.write_text("\n".join(parts), encoding="utf-8")
    done = subprocess.run(
        [node().path, str(script)],
        input=json.dumps(asked),
        capture_output=True,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
