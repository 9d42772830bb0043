"""Every command in the README runs, in the order in which it stands there."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text("utf-8")

# Smaller than what people would train, so that all of it takes seconds.
SMALL = ("train.max_steps=4", "model.n_layer=1", "model.n_head=2", "model.n_embd=16",
         "model.block_size=16", "train.batch_size=4", "train.sample_every=0", "train.eval_every=2",
         "run.threads=1")  # fmt: skip

ATTENTION = """
from gptcli.model.attention import CausalSelfAttention
"""


def commands() -> list[str]:
    """The lines of all shell blocks, comments cut off."""
    blocks = re.findall(r"^```sh\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    lines = [line.partition("  #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line]


def test_there_are_commands() -> None:
    assert len([c for c in commands() if c.startswith("gptcli")]) > 20


def test_gptcli_commands(
    tmp_path: Path, text_file: Path, monkeypatch: pytest.MonkeyPatch, cli
) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.chdir(tmp_path)
    # Few steps fill the time of --minutes.
    monkeypatch.setattr("gptcli.training.minutes.seconds_per_step", lambda *_: 1.0)
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
            if "--minutes" in words:  # which chooses the number of steps
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
def test_make_targets_exist() -> None:
    for command in commands():
        if command.startswith("make "):
            done = subprocess.run(
                ["make", "-n", *command.split()[1:]], cwd=ROOT, capture_output=True, text=True
            )
            assert done.returncode == 0, done.stderr


def test_the_way_without_make_is_the_way_of_make() -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    (pip,) = [c for c in commands() if " -m pip install" in c]
    assert pip.endswith("pip install -c constraints.txt -e '.[dev]'")
    assert "-c constraints.txt -e '.[dev]'" in makefile
    assert "python3 -m venv .venv" in commands()
    assert ".venv/bin/gptcli train" in commands()
    assert sys.version_info >= (3, 10)


def test_links_lead_somewhere() -> None:
    for name in ("README.md", "CONTRIBUTING.md", "data/README.md"):
        text = (ROOT / name).read_text("utf-8")
        for link in re.findall(r"\]\((?!https?:|#)([^)#]+)\)", text):
            assert (ROOT / name).parent.joinpath(link).exists(), f"{name}: {link}"


def test_every_pin_is_a_dependency_and_every_dependency_is_pinned() -> None:
    text = (ROOT / "pyproject.toml").read_text("utf-8")
    wanted = {
        re.split(r"[><=\[ ]", item)[0].lower()
        for item in re.findall(r'^  "([A-Za-z][A-Za-z0-9_.\-]*[^"]*)",$', text, re.MULTILINE)
        if "::" not in item
    }
    pins = re.findall(
        r"^([A-Za-z0-9_.\-]+)==", (ROOT / "constraints.txt").read_text("utf-8"), re.MULTILINE
    )
    pinned = {pin.lower() for pin in pins}
    assert pinned - {"hatchling"} <= wanted
    assert {w for w in wanted if not w.startswith(("gpt", "transformer"))} <= pinned | {
        "attention", "language model", "education"}  # fmt: skip
