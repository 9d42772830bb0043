"""Draws all pictures of the documentation from real runs of gptcli: `make pictures`.

    python docs/pictures.py [NAME ...]     # all pictures, or those whose path contains a NAME
    python docs/pictures.py --list

The program trains its runs in build/pictures with gptcli, and leaves them there. A second call of
the program trains only one run again: docs/train-moving.svg shows this training. Delete
build/pictures to train all runs again.
"""

from __future__ import annotations

import importlib
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Picture:
    """A picture: its path from the root of the repository, the function that draws it
    ("module:function"), and the gptcli commands that it shows, without their arguments. One
    function can draw several pictures."""

    path: str
    maker: str
    commands: tuple[str, ...]


PICTURES = (
    Picture("docs/train.svg", "captures:training", ("train", "sample")),
    Picture("docs/train-moving.svg", "captures:training", ("train", "sample")),
    Picture("docs/check-attention.svg", "captures:check", ("check-attention",)),
    Picture("docs/tokens.svg", "captures:tokens", ("tokenizer show",)),
    Picture("docs/course/check-attention.svg", "captures_course:checks", ("check-attention",)),
    Picture("docs/course/check-layernorm.svg", "captures_course:checks", ("check-layernorm",)),
    Picture("docs/course/status.svg", "captures_course:checks", ("exercise",)),
    Picture("docs/page.png", "captures_page:model", ("page",)),
    Picture("docs/page-attention.png", "captures_page:model", ("page",)),
    Picture("docs/page-steps.png", "captures_page:model", ("page",)),
    Picture("docs/pictures/report.png", "captures_page:report", ("report",)),
    Picture("docs/pictures/report-heads.png", "captures_page:report", ("report",)),
    Picture("docs/pictures/compare.png", "captures_page:compare", ("compare",)),
    Picture("docs/pictures/scaling.png", "captures_page:scaling", ("scaling",)),
    Picture("docs/pictures/look.png", "captures_page:look", ("look",)),
    Picture("docs/dial.svg", "captures:dial", ("train",)),
)


class Workshop:
    """The folder in which this program trains the runs and calls the commands."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "runs").mkdir(parents=True, exist_ok=True)

    def gptcli(self, *words: str, folder: Path | None = None) -> None:
        """Run a gptcli command in `folder` (default: the workshop's folder). If the command fails,
        end the program with a message."""
        command = [sys.executable, "-m", "gptcli", *words]
        done = subprocess.run(command, cwd=folder or self.folder, check=False)
        if done.returncode != 0:
            sys.exit(f"{' '.join(command)} ended with {done.returncode}")

    def fresh(self, name: str) -> Path:
        """Make and return an empty folder. Commands that run in this folder show short paths and no
        earlier runs."""
        folder = self.folder / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        return folder

    def train(self, name: str, *words: str) -> None:
        """Train the run runs/NAME, unless it already has checkpoints."""
        if not (self.folder / "runs" / name / "checkpoints").is_dir():
            self.gptcli("train", *words, "--out", f"runs/{name}", "--overwrite")

    def some_shakespeare(self, name: str, characters: int) -> str:
        """Write a file with the beginning of the shipped text, and return its name."""
        text = (ROOT / "data" / "shakespeare.txt").read_text("utf-8")
        (self.folder / name).write_text(text[:characters], encoding="utf-8")
        return name


def main(words: Sequence[str]) -> None:
    """Draw the pictures whose path contains one of `words`, or all pictures if there are no
    words."""
    if "--list" in words:
        for one in PICTURES:
            print(f"{one.path}  gptcli {', '.join(one.commands)}")
        return
    chosen = [one for one in PICTURES if not words or any(word in one.path for word in words)]
    if not chosen:
        sys.exit(f"no picture's path holds {' or '.join(words)}; --list shows all")
    shop = Workshop(ROOT / "build" / "pictures")
    for maker in dict.fromkeys(one.maker for one in chosen):
        module, _, function = maker.partition(":")
        print(f"{maker} ...", flush=True)
        getattr(importlib.import_module(module), function)(shop)
    for one in chosen:
        path = ROOT / one.path
        print(f"{one.path}  {path.stat().st_size // 1000} KB")


if __name__ == "__main__":
    main(sys.argv[1:])
