"""What all tests share: a cache of their own, one thread, the command line in this process."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

# Two workers with two threads each would wait for one another on two cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

torch.set_num_threads(1)

TEXT = "".join(
    f"{who}:\nWhat {thing} is this, that {deed} by night?\n\n"
    for who in ("KING", "QUEEN", "FOOL")
    for thing in ("light", "shadow", "voice", "hand")
    for deed in ("comes", "sings", "burns", "walks")
)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Token caches of tests go to a temporary folder, never to the user's."""
    patch = pytest.MonkeyPatch()
    patch.setenv("GPTCLI_CACHE", str(tmp_path_factory.mktemp("cache")))
    patch.delenv("NO_COLOR", raising=False)
    patch.delenv("FORCE_COLOR", raising=False)
    yield
    patch.undo()


@pytest.fixture(scope="session")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small text: 48 short speeches."""
    path = tmp_path_factory.mktemp("text") / "speeches.txt"
    path.write_text(TEXT, encoding="utf-8", newline="\n")
    return path


@dataclass
class Outcome:
    """What a command line did."""

    code: int
    out: str
    err: str


Cli = Callable[..., Outcome]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Run `gptcli ARGS` in this process: cli("train", "tiny") -> Outcome."""

    def call(*arguments: object) -> Outcome:
        from gptcli.cli import main

        monkeypatch.setattr(sys, "argv", ["gptcli", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        code = ended.value.code
        assert isinstance(code, int)
        return Outcome(code, captured.out, captured.err)

    return call


SMALL = (
    "model.n_layer=1",
    "model.n_head=2",
    "model.n_embd=32",
    "model.block_size=32",
    "train.batch_size=8",
    "run.threads=1",
)
"""Overrides that make any config a matter of a second."""


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, text_file: Path) -> Path:
    """A small run, trained once, float32: 40 steps on the small text, evaluated twice."""
    import subprocess

    run = tmp_path_factory.mktemp("runs") / "small"
    command = [
        sys.executable,
        "-m",
        "gptcli",
        "train",
        str(text_file),
        "--out",
        str(run),
        *SMALL,
        "train.max_steps=40",
        "train.eval_every=20",
        "run.dtype=float32",
    ]
    subprocess.run(command, check=True, capture_output=True)
    return run
