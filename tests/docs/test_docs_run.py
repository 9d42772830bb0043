"""Runs the commands and programs of the documentation, page by page, but with small trainings.

Each page runs in its own folder, which has the files and runs that the page names. The trainings
have only a few steps and a tiny network. NOT_RUN lists the commands that the tests do not run, with
the reasons.
"""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest

from gptcli.course.catalogue import EXERCISES, exercise_named
from gptcli.course.solutions import solution
from gptcli.errors import GptcliError
from gptcli.training.estimate import StepTime
from tests.conftest import TEXT, Once
from tests.docs.markdown import PAGES, Block, blocks, words_of

SMALL = {
    "train.max_steps": "4", "train.eval_every": "2", "train.sample_every": "0",
    "train.batch_size": "4", "model.n_layer": "1", "model.n_head": "2", "model.n_embd": "16",
    "model.block_size": "16", "run.threads": "1",
}  # fmt: skip
"""Config values for the trainings of all pages. They are smaller than the values in the pages, so
that all commands together take seconds."""

SMALLER = [*(f"{key}={value}" for key, value in SMALL.items()), "model.n_layer=2",
           "train.max_steps=40", "train.eval_every=20"]  # fmt: skip
"""The settings of the run `trained`. If a page names a run that it does not train, the tests use a
copy of this run."""

NOT_RUN = {
    "make": "tests/test_readme.py checks that the target exists",
    "source": "it changes the shell that runs it",
    "python3 -m venv": "make wheel-check makes an environment",
    ".venv/bin/python -m pip": "make wheel-check installs gptcli",
    "pip install": "make wheel-check installs gptcli; the packages come from an index",
    "uvx": "make wheel-check runs it",
    ".venv/bin/gptcli": "the tests of the other commands run gptcli",
    "torchrun": "tests/distributed starts it",
    "sbatch": "it needs Slurm",
    "scp": "it needs another machine",
    "gptcli tokenizer shards texts/ --tokenizer gpt2 --out s3://mine/tokens": "it needs a bucket",
    "gptcli train mine.yaml data.source=s3://mine/tokens": "it needs a bucket",
    "gptcli train mine.yaml --out runs/mine --copy-to": "it needs a bucket",
    "gptcli train --resume --out runs/mine --copy-to": "it needs a bucket",
    "curl": "tests/serving asks a server the same",
    "python -m benchmarks.ranks": "it measures for minutes",
    "gptcli serve": "it serves until a signal ends it; tests/serving starts it",
    "gptcli scaling": "it trains for minutes; tests/experiments trains a smaller ladder",
    "gptcli train big.yaml --devices": "tests/distributed trains in several processes",
    "gptcli exercise --status my --watch": "it runs until Ctrl-C; tests/course stops it",
    "gptcli exercise attention --status my --watch": "it runs until Ctrl-C; tests/course stops it",
}
"""The command lines that the tests do not run: beginning of the line -> the reason."""

NO_PROGRAMS = {
    "docs/reference/python.md": "its blocks are signatures",
    "docs/finetune.md": "peft warns about transformers; tests/interop loads an export with peft",
    "docs/serve.md": "it asks a server; tests/serving asks one with the same client",
}
"""The pages whose Python the tests do not run, and the reasons. In all pages, the tests run the
commands in blocks of sh and console, test_docs_text.py parses the YAML, and no test runs the
JavaScript."""

NEEDS = {
    "--to gguf": ("gguf",), "--to onnx": ("onnx",), "--to tensorboard": ("tensorboard",),
    "run.loggers=csv,tensorboard": ("tensorboard", "trackio", "wandb"),
    "from transformers import": ("transformers",),
}  # fmt: skip
"""Words in a command or program -> the optional packages that it needs. If a package is missing,
the command or program is not run. `make interop` installs all of them."""

MAY_FAIL = re.compile(r"gptcli check-")
"""Commands that exit with 1 if the learner's file is wrong. Some pages show wrong files on
purpose."""

LEARNERS = (
    "my_attention.py", "nomask.py", "gpt.py", "mingpt/model.py", "students/ada/attention.py",
    "cs336_basics/model.py:MultiheadSelfAttention", "solutions.py:Attention",
    "ch03.ipynb:MultiHeadAttentionWrapper", "1.1_Transformer_from_Scratch.ipynb:Attention",
)  # fmt: skip
"""The learners' files (and classes) that the pages name. In these tests, all of them hold the
course's solution."""

RUNS = re.compile(
    r"(?:runs/)?(mine|deeper|attention|char|overfit|shakespeare|night|a|b|own|short|small)(?=$|/)"
)
"""The names of runs that pages use without training them first."""

PAGES_WITH_CODE = [page for page in PAGES if any(
    block.language in ("sh", "bash", "console", "python", "yaml") for block in blocks(page))
]  # fmt: skip


def reason(command: str) -> str | None:
    """The reason why a command is not run, or None if it is run."""
    for beginning, why in NOT_RUN.items():
        if command == beginning or command.startswith(beginning + " "):
            return why
    return missing(command)


def missing(code: str) -> str | None:
    """Why a command or program cannot run, if it needs a package that is missing.

    Otherwise None."""
    for part, packages in NEEDS.items():
        for package in packages:
            if part in code and importlib.util.find_spec(package) is None:
                return f"{package} is not installed"
    return None


def notebook(code: str) -> str:
    """A notebook with one cell, as JSON."""
    cell = {"cell_type": "code", "source": code, "metadata": {}, "outputs": []}
    return json.dumps({"cells": [cell], "metadata": {}, "nbformat": 4, "nbformat_minor": 5})


@pytest.fixture(scope="session")
def kept(once: Once) -> Path:
    """The folder that is copied for each page before its commands run.

    It holds texts, learners' files, and the run `trained`."""

    def make(folder: Path) -> None:
        text = TEXT + "The End. Once upon a time: To be, or not to be? ROMEO: Hello world\n"
        for name in ("my.txt", "more.txt", "big.txt", "poem.txt", "my-texts/one.txt",
                     "moved-texts/one.txt", "capitals.txt"):  # fmt: skip
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(text, encoding="utf-8")
        (folder / "lora.yaml").write_text(
            "data: {source: capitals.txt}\ntrain: {lora: {rank: 8}}\n", encoding="utf-8"
        )
        (folder / "prompts.txt").write_text("KING\nQUEEN\n", encoding="utf-8")
        (folder / "speeches.jsonl").write_text('{"body": "What light is this?"}\n' * 80, "utf-8")
        (folder / "my").mkdir()
        for exercise in EXERCISES:
            (folder / "my" / f"{exercise.name}.py").write_text(solution(exercise), "utf-8")
        attention = (folder / "my" / "attention.py").read_text("utf-8")
        for name in LEARNERS:
            file, _, cls = name.partition(":")
            code = attention.replace("CausalSelfAttention", cls or "CausalSelfAttention")
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).write_text(notebook(code) if file.endswith("ipynb") else code, "utf-8")
        command = [sys.executable, "-m", "gptcli", "train", "my.txt", *SMALLER, "--out", "trained"]
        subprocess.run(command, check=True, capture_output=True, cwd=folder)

    return once("docs", make)


class Shell:
    """Runs the commands of a page in the current folder, but with small trainings."""

    def __init__(self, cli: Any) -> None:
        self.cli = cli

    def run(self, block: Block, command: str) -> None:
        """Run a command of a block, with changes that make it quick.

        Fail if its exit code is not the expected one."""
        words, target = words_of(command)
        assert words[0] == "gptcli", f"{block}: {command}: name the reason in NOT_RUN"
        words = words[1:]
        if words[0] in ("train", "sweep"):
            words = self._smaller(words)
        elif words[0] == "import":
            self._foreign(words[1])
        elif words[0] == "inspect-batch":
            words[-1] = "2"
        written = None
        if words[0] == "exercise" and "--out" in words:
            written = Path(words[words.index("--out") + 1], words[1]).with_suffix(".py")
            for path in written.parent.glob(f"{written.stem}.*"):
                path.unlink()
        self._give_runs(words)
        outcome = self.cli(*words)
        good = (0, 1) if MAY_FAIL.match(command) else (0,)
        assert outcome.code in good, f"{block}: {command}\n{' '.join(words)}\n{outcome.err}"
        if target:
            Path(target).write_text(outcome.out, encoding="utf-8")
        if written is not None:  # fill the exercise in with the solution, as a learner would
            assert "NotImplementedError" in written.read_text("utf-8")
            written.write_text(solution(exercise_named(written.stem)), "utf-8")

    def _smaller(self, words: list[str]) -> list[str]:
        """The words of a command, changed so that its training has few steps and a tiny network."""
        if words[0] == "sweep" and "--minutes" in words:
            at = words.index("--minutes")
            words = [*words[:at], *words[at + 2 :]]
        sizes = {"train.max_steps": 60 if "--extend" in words else 4, "model.n_layer": 1,
                 "model.n_embd": 16}  # fmt: skip
        for key, value in sizes.items():
            words = [re.sub(rf"^{re.escape(key)}=\d+$", f"{key}={value}", word) for word in words]
        if "--resume" in words:
            return words
        given = {word.partition("=")[0] for word in words if "=" in word}
        if "--minutes" in words:  # with --minutes, gptcli chooses these two keys
            given |= {"train.max_steps", "train.eval_every"}
        if "--from" in words:
            given |= {key for key in SMALL if key.startswith("model.")}
        return [*words, *(f"{key}={value}" for key, value in SMALL.items() if key not in given)]

    def _give_runs(self, words: list[str]) -> None:
        """If a command names a run that does not exist, make a copy of `trained` with this name.

        If the command writes a new file or run to --out, delete what an earlier command of the page
        wrote there."""
        out = words.index("--out") + 1 if "--out" in words else None
        for place, word in enumerate(words):
            if place == out and not {"--resume", "--overwrite"} & set(words):
                if Path(word).is_file() or words[0] == "train":
                    _remove(Path(word))
                continue
            if found := RUNS.match(word):
                self._give(found[1])
        if words[0] in ("sample", "eval") and len(words) == 1 and not Path("runs").exists():
            self._give("mine")

    def _give(self, name: str) -> None:
        run = Path("runs", name)
        if not run.exists():
            shutil.copytree("trained", run)

    def _foreign(self, name: str) -> None:
        """Let the folder `name` hold a model in Hugging Face's format, which an import can read."""
        self._give("exported")
        if not Path(name).exists():
            outcome = self.cli("export", "exported", "--to", "huggingface", "--out", name)
            assert outcome.code == 0, outcome.err


def _remove(path: Path) -> None:
    """Remove a file or a folder if it exists."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def program(block: Block) -> str:
    """The Python program of a block, with fewer training steps."""
    text = re.sub(r'"train.max_steps": \d+', '"train.max_steps": 8', block.text)
    return re.sub(r'"train.eval_every": \d+', '"train.eval_every": 4', text)


def learner_class(path: Path) -> type:
    """The class CausalSelfAttention of a learner's file.

    Imports the file, so that Python's `inspect` finds the source."""
    spec = importlib.util.spec_from_file_location("my_attention", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found: type = module.CausalSelfAttention
    return found


def raises(following: Block | None) -> bool:
    """Whether the block after a program shows that the program raises an error of gptcli."""
    return following is not None and re.match(r"gptcli\.\S+Error: ", following.text) is not None


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES_WITH_CODE)
def test_every_command_and_program_of_a_page_runs(
    page: str, kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Any
) -> None:
    folder = tmp_path / "work"
    shutil.copytree(kept, folder)
    monkeypatch.chdir(folder)
    # Let gptcli assume that a step takes a second, so that few steps fill the time of --minutes.
    monkeypatch.setattr("gptcli.training.minutes.measured_step", lambda *_: StepTime(1.0, 1.0))
    monkeypatch.setattr("gptcli.training.planner.Planner.max_steps", lambda *_: None)
    shell = Shell(cli)
    names: dict[str, Any] = {"MyAttention": learner_class(folder / "my_attention.py")}
    found = blocks(page)
    for block, following in zip(found, [*found[1:], None], strict=True):
        for command in block.commands():
            if reason(command) is None:
                shell.run(block, command)
        if block.language != "python" or page in NO_PROGRAMS or missing(block.text):
            continue
        code = compile(program(block), str(block), "exec")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            if raises(following):
                with pytest.raises(GptcliError):
                    exec(code, names)
            else:
                exec(code, names)


def test_each_reason_is_needed() -> None:
    """Each entry of NOT_RUN, NO_PROGRAMS and NEEDS applies to at least one page."""
    commands = [command for page in PAGES for block in blocks(page) for command in block.commands()]
    for beginning in NOT_RUN:
        assert any(command.startswith(beginning) for command in commands), beginning
    for page in NO_PROGRAMS:
        assert any(block.language == "python" for block in blocks(page)), page
    text = "\n".join(block.text for page in PAGES for block in blocks(page))
    for part in NEEDS:
        assert part in text, part


@pytest.mark.parametrize("page", PAGES_WITH_CODE)
def test_every_command_is_run_or_has_a_reason(page: str) -> None:
    for block in blocks(page):
        for command in block.commands():
            assert reason(command) or command.startswith("gptcli "), f"{block}: {command}"
