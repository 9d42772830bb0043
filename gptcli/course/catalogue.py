"""The list of exercises, in the order of the course. Importing this file does not import torch."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from gptcli.course.attention import STEP_NAMES
from gptcli.errors import GptcliError, nearest
from gptcli.files.paths import shell_word

MATERIAL = Path(__file__).parent / "exercises" / "material"


@dataclass(frozen=True)
class Exercise:
    """One exercise: its name, its week and what the learner writes.

    `target` is the name of a class: a file that defines this class is a file for this exercise.
    `target` is "" if no class identifies the files for the exercise. `steps` are the names of the
    steps, in the order in which the check numbers them."""

    name: str
    week: str
    target: str
    summary: str
    steps: tuple[str, ...]

    @property
    def command(self) -> str:
        """The name of the command that checks the exercise."""
        return f"check-{self.name}"

    def skeleton(self, path: Path | None = None, *, blank: bool = False) -> str:
        """The text of the file that the learner fills in.

        With `blank`, the learner writes the constructor too. `path` is where the file will be,
        relative to the folder in which the learner works. Commands in the text, such as
        `gptcli check-mlp my/mlp.py`, name files in the folder of `path`."""
        text = (MATERIAL / f"{self.name}.py.txt").read_text(encoding="utf-8")
        kept, inside = [], False
        for line in text.splitlines():
            mark = line.strip()
            if mark == "# <given>":
                inside = blank
                if blank:
                    indent = " " * (len(line) - len(line.lstrip()))
                    kept.append(f'{indent}raise NotImplementedError("step 1: the constructor")')
            elif mark == "# </given>":
                inside = False
            elif not inside:
                kept.append(line)
        return self._with_path("\n".join(kept) + "\n", path)

    def notes(self, path: Path | None = None) -> str:
        """A Markdown page with questions and references for the exercise.

        Commands in the page name files in the folder of `path`."""
        text = (MATERIAL / f"{self.name}.md").read_text(encoding="utf-8")
        return self._with_path(text, path)

    def _with_path(self, text: str, path: Path | None) -> str:
        """`text`, with the folder of `path` (default: my/) before the file names in commands."""
        folder = Path("my") if path is None else path.parent

        def placed(match: re.Match[str]) -> str:
            return re.sub(r"\b[a-z]+\.py\b", lambda m: shell_word(folder / m[0]), match[0])

        return re.sub(r"gptcli (?:check-\w+|train|sample) [^`\n]*", placed, text)


EXERCISES = (
    Exercise(
        "attention",
        "1 and 2",
        "CausalSelfAttention",
        "each token looks at the tokens before it",
        tuple(STEP_NAMES.values()),
    ),
    Exercise(
        "layernorm",
        "3",
        "LayerNorm",
        "each token gets mean 0 and variance 1",
        ("mean", "variance", "normalise", "gain and bias"),
    ),
    Exercise(
        "mlp",
        "3",
        "MLP",
        "two linear layers with GELU between them",
        ("expand by 4", "exact GELU", "project back", "dropout"),
    ),
    Exercise(
        "block",
        "3",
        "Block",
        "two norms, two branches, two residuals",
        ("first norm", "attention and residual", "second norm", "feed-forward and residual"),
    ),
    Exercise(
        "tokenizer",
        "4",
        "Tokenizer",
        "byte-pair encoding: text to ids and back",
        ("count pairs", "merge", "encode", "decode", "save and load"),
    ),
    Exercise(
        "training",
        "5 and 6",
        "",
        "batches, loss, schedule, training step",
        ("get_batch", "loss", "learning rate", "clipping", "training step", "evaluation"),
    ),
    Exercise(
        "sampling",
        "7",
        "",
        "logits to tokens: filters, draw, stop strings",
        (
            "temperature",
            "top-k",
            "top-p",
            "min-p",
            "repetition penalty",
            "draw",
            "next token",
            "stop strings",
        ),
    ),
    Exercise(
        "cache",
        "8",
        "KeyValueCache",
        "each token is computed only once",
        ("store", "read", "positions", "full window", "mask", "equality with recomputation"),
    ),
    Exercise(
        "modern",
        "9",
        "",
        "RMSNorm, rotary positions, grouped queries",
        (
            "RMSNorm",
            "rotary angles",
            "rotate",
            "rotated heads",
            "grouped queries",
            "attention",
        ),
    ),
)


def exercise_named(name: str) -> Exercise:
    """The exercise called `name`. An unknown name raises GptcliError, which lists all names."""
    for exercise in EXERCISES:
        if exercise.name == name:
            return exercise
    names = [exercise.name for exercise in EXERCISES]
    like = nearest(name, names)
    raise GptcliError(
        f"there is no exercise `{name}`",
        (f"did you mean `{like}`? " if like else "") + "exercises: " + ", ".join(names),
    )
