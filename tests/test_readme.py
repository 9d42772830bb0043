"""The README: every command runs, in order; links and the way without make are right."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from gptcli.training.estimate import StepTime

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text("utf-8")

# Smaller than what people train, so that all commands together take seconds.
SMALL = ("train.max_steps=4", "model.n_layer=1", "model.n_head=2", "model.n_embd=16",
         "model.block_size=16", "train.batch_size=4", "train.sample_every=0", "train.eval_every=2",
         "run.threads=1")  # fmt: skip

ATTENTION = """
from gptcli.model.attention import CausalSelfAttention
"""


def commands() -> list[str]:
    """The lines of all shell blocks, without their comments."""
    blocks = re.findall(r"^```sh\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    lines = [line.partition("  #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line]


def test_the_readme_has_shell_blocks() -> None:
    assert len([c for c in commands() if c.startswith("gptcli")]) > 20


@pytest.mark.slow
def test_every_gptcli_command_runs(
    tmp_path: Path, text_file: Path, monkeypatch: pytest.MonkeyPatch, cli
) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.chdir(tmp_path)
    # Few steps fill the time of --minutes.
    monkeypatch.setattr("gptcli.training.minutes.measured_step", lambda *_: StepTime(1.0, 1.0))
    monkeypatch.setattr("gptcli.training.planner.Planner.max_steps", lambda *_: None)
    text = text_file.read_text("utf-8")
    for name in ("my.txt", "more.txt", "prompts.txt"):
        Path(name).write_text(text + "The End. Once", encoding="utf-8")
    Path("my_attention.py").write_text(ATTENTION, encoding="utf-8")
    for command in commands():
        if not command.startswith("gptcli"):
            continue
        line, _, target = command.partition(" > ")
        words = shlex.split(line)[1:]
        if words[0] == "train" and "--resume" not in words:
            given = {word.partition("=")[0] for word in words if "=" in word}
            if "--minutes" in words:  # gptcli chooses the number of steps
                given |= {"train.max_steps", "train.eval_every"}
            fine_tune = "--from" in words
            words += [small for small in SMALL if small.partition("=")[0] not in given
                      and not (fine_tune and small.startswith("model."))]  # fmt: skip
            words = [re.sub(r"max_steps=\d+", "max_steps=4", word) for word in words]
            words = [re.sub(r"n_layer=\d+", "n_layer=1", word) for word in words]
        if "--resume" in words and "--extend" in words:
            words = [re.sub(r"max_steps=\d+", "max_steps=6", word) for word in words]
        outcome = cli(*words)
        assert outcome.code == 0, f"{command}\n{outcome.err}"
        if target:
            Path(target.strip()).write_text(outcome.out, encoding="utf-8")


@pytest.mark.skipif(os.name != "posix", reason="make")
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


def test_every_link_leads_to_a_file() -> None:
    for name in ("README.md", "CONTRIBUTING.md", "data/README.md"):
        text = (ROOT / name).read_text("utf-8")
        for link in re.findall(r"\]\((?!https?:|#)([^)#]+)\)", text):
            assert (ROOT / name).parent.joinpath(link).exists(), f"{name}: {link}"


def test_constraints_pin_every_dependency_and_satisfy_its_bound() -> None:
    tomllib = pytest.importorskip("tomllib")  # Python 3.11
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    dependencies = {
        canonicalize_name(requirement.name): requirement
        for text in (
            *project["project"]["dependencies"],
            *project["project"]["optional-dependencies"]["dev"],
            *project["project"]["optional-dependencies"]["interop"],
            *project["project"]["optional-dependencies"]["pictures"],
            *project["project"]["optional-dependencies"]["docs"],
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
