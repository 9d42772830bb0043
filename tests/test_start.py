"""On a CPU, commands such as `sample`, `score` and `eval` do not import PyTorch, and print what
they would print with PyTorch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import gptcli
from gptcli.devices import threads_without_torch
from gptcli.native import library

ROOT = Path(__file__).resolve().parent.parent
REPORT = """
import json, sys
sys.argv = ["gptcli", *json.loads(sys.argv[1])]
from gptcli.__main__ import main
try:
    main()
except SystemExit as ended:
    assert not ended.code, ended.code
sys.stdout.flush()
sys.stderr.write("\\n" + json.dumps(sorted(sys.modules)))
"""
TORCH_FREE = (
    "gptcli.api.generation",
    "gptcli.api.loading",
    "gptcli.api.model",
    "gptcli.api.scoring",
    "gptcli.cli",
    "gptcli.cli.evaluate",
    "gptcli.cli.runs",
    "gptcli.cli.sample",
    "gptcli.cli.score",
    "gptcli.cli.tokenizer",
    "gptcli.config_files",
    "gptcli.corpus.preparation",
    "gptcli.devices",
    "gptcli.model",
    "gptcli.model.arch",
    "gptcli.model.parameters",
    "gptcli.model.user_parts",
    "gptcli.model.weights",
    "gptcli.native.decoder",
    "gptcli.native.engine",
    "gptcli.native.loss",
    "gptcli.sampling.backend",
    "gptcli.sampling.conversation",
    "gptcli.sampling.native_score",
    "gptcli.sampling.native_streams",
    "gptcli.sampling.text",
    "gptcli.sampling.valid_text",
    "gptcli.training.loading",
    "gptcli.training.native_evaluate",
    "gptcli.training.opening_text",
    "gptcli.training.run_folder",
    "gptcli.training.schedule",
)
"""The modules that must not import PyTorch."""


def needs(source: library.Source) -> None:
    found = library.find(source)
    if found.library is None:
        pytest.skip(f"no C library on this machine: {found.reason}")
    if not library.is_compiled(source):  # another test has removed the library from the cache
        library.find.__wrapped__(source)


def started(*words: object) -> tuple[str, set[str]]:
    """Run a command in a new process. Return its stdout and the modules that it imported."""
    command = [sys.executable, "-c", REPORT, json.dumps([*map(str, words)])]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    return done.stdout, set(json.loads(done.stderr.splitlines()[-1]))


def test_modules_for_sampling_on_a_cpu_import_no_pytorch() -> None:
    code = f"import sys, {', '.join(TORCH_FREE)}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_sample_imports_neither_pytorch_nor_numpy(cli: Any, trained: Path) -> None:
    needs(library.SAMPLING)
    words = ("sample", trained, "--device", "cpu", "--seed", 3, "-n", 60)
    out, modules = started(*words)
    assert not {"torch", "numpy", "tokenizers", "tiktoken", "rich"} & modules
    assert "gptcli.cli.train" not in modules
    assert len(modules) < 450, "each module that a cold start imports costs a millisecond"
    assert out == cli(*words).out


@pytest.mark.parametrize("command", ["score", "eval", "runs", "tokenizer"])
def test_other_commands_import_no_pytorch(
    command: str, cli: Any, trained: Path, tmp_path: Path
) -> None:
    needs(library.SAMPLING)
    needs(library.TRAINING_FLOAT32)
    file = tmp_path / "text.txt"
    file.write_text("KING:\nWhat light is this?\n", encoding="utf-8")
    words: tuple[object, ...] = {
        "score": ("score", trained, file, "--device", "cpu"),
        "eval": ("eval", trained, "--device", "cpu", "--dtype", "float32"),
        "runs": ("runs",),
        "tokenizer": ("tokenizer", "encode", "--tokenizer", trained, "KING"),
    }[command]
    out, modules = started(*words)
    assert "torch" not in modules
    assert out == cli(*words).out


@pytest.mark.parametrize(
    "options",
    [
        ("--temperature", "0"),
        ("--top-k", "5", "--repetition-penalty", "1.2", "--num-samples", "3"),
        ("--top-p", "0.9", "--min-p", "0.02", "--stop", "th", "--seed", str(2**40 + 1)),
    ],
)
def test_pytorch_writes_the_same_text(
    options: tuple[str, ...], cli: Any, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs(library.SAMPLING)
    words = ("sample", trained, "--dtype", "float32", "--seed", 7, "-n", 80, "--json", *options)
    quick = [json.loads(line) for line in cli(*words).out.splitlines()]
    none = library.Found(None, "there is no C compiler")
    monkeypatch.setattr(library, "find", lambda source: none)
    plain = [json.loads(line) for line in cli(*words).out.splitlines()]
    assert [one["text"] for one in quick] == [one["text"] for one in plain]


def test_both_libraries_evaluate_alike(
    cli: Any, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs(library.TRAINING_FLOAT32)
    words = ("eval", trained, "--device", "cpu", "--dtype", "float32", "--context", 20, "--json")
    quick = json.loads(cli(*words).out)
    monkeypatch.setattr("gptcli.training.native_evaluate.can_evaluate", lambda weights: False)
    plain = json.loads(cli(*words).out)
    assert quick["loss"] == pytest.approx(plain["loss"], rel=2e-6)
    assert {**quick, "loss": 0, "perplexity": 0, "bits_per_byte": 0} == {
        **plain, "loss": 0, "perplexity": 0, "bits_per_byte": 0,
    }  # fmt: skip


@pytest.mark.slow
def test_as_many_threads_as_pytorch_takes() -> None:
    code = (
        "from gptcli.devices import choose_threads, threads_without_torch\n"
        "assert choose_threads('auto') == threads_without_torch('auto')\n"
        "assert choose_threads(3) == threads_without_torch(3) == 3\n"
    )
    for variable in ({}, {"OMP_NUM_THREADS": "1"}, {"MKL_NUM_THREADS": "1"}):
        kept = {
            key: value
            for key, value in os.environ.items()
            if key not in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
        }
        subprocess.run([sys.executable, "-c", code], env={**kept, **variable}, cwd=ROOT, check=True)


def test_changed_weights_of_the_module_count(trained: Path) -> None:
    """If a Python program changes the weights of `model.module`, the C library must not sample with
    the old weights."""
    needs(library.SAMPLING)
    model = gptcli.load(trained, device="cpu", dtype="float32")
    before = model.generate("KING", max_new_tokens=30, temperature=0.0)
    with torch.no_grad():
        model.module.lm_head.weight.neg_()
    assert model.generate("KING", max_new_tokens=30, temperature=0.0) != before


def test_systems_without_affinity_count_their_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """On macOS and Windows, which have no os.sched_getaffinity, gptcli takes the number of all
    cores."""
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    monkeypatch.setattr("gptcli.container.cpu_quota", lambda: None)
    assert threads_without_torch("auto") == 6
