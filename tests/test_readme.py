"""The README is short, and its make targets exist. It also has commands for systems without make:
they install the same packages as make."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.docs.markdown import blocks

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text("utf-8")


def commands() -> list[str]:
    """All command lines in the README's code blocks. The tests in tests/docs run most of them."""
    return [command for block in blocks("README.md") for command in block.commands()]


def test_the_readme_is_short_and_has_commands() -> None:
    assert len(README) < 10_000
    assert len([c for c in commands() if c.startswith("gptcli")]) > 10


@pytest.mark.skipif(os.name != "posix", reason="needs make")
def test_every_make_target_exists() -> None:
    for command in commands():
        if command.startswith("make "):
            done = subprocess.run(
                ["make", "-n", *command.split()[1:]], cwd=ROOT, capture_output=True, text=True
            )
            assert done.returncode == 0, done.stderr


def test_without_make_the_readme_installs_what_make_installs() -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    by_make, *_ = re.findall(r"^\t.* -m pip install (.+)$", makefile, re.MULTILINE)
    (by_hand,) = [c.partition(" -m pip install ")[2] for c in commands() if " -m pip install" in c]
    quiet = {"--quiet", "--disable-pip-version-check"}
    assert shlex.split(by_hand) == [word for word in shlex.split(by_make) if word not in quiet]
    assert "python3 -m venv .venv" in commands()
    assert "\t$(PYTHON) -m venv .venv\n" in makefile


def test_constraints_pin_every_dependency_and_satisfy_its_bound() -> None:
    tomllib = pytest.importorskip("tomllib")  # new in Python 3.11
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    dependencies = {
        canonicalize_name(requirement.name): requirement
        for text in (
            *project["project"]["dependencies"],
            *project["project"]["optional-dependencies"]["dev"],
            *project["project"]["optional-dependencies"]["compiler"],
            *project["project"]["optional-dependencies"]["interop"],
            *project["project"]["optional-dependencies"]["pictures"],
            *project["project"]["optional-dependencies"]["docs"],
            *project["project"]["optional-dependencies"]["release"],
            *project["build-system"]["requires"],
        )
        for requirement in [Requirement(text)]
    }
    pins = [
        Requirement(line)
        for line in (ROOT / "constraints.txt").read_text("utf-8").splitlines()
        if not line.startswith("#")
    ]
    assert {canonicalize_name(pin.name) for pin in pins} == set(dependencies)
    for pin in pins:
        (version,) = pin.specifier
        assert version.operator == "=="
        assert dependencies[canonicalize_name(pin.name)].specifier.contains(version.version), pin
