"""Records the small runs of tests/old_runs, and what gptcli prints about them, for
test_old_runs.py.

    python tests/old_runs/record.py FOLDER [NAME ...]

It writes the folder FOLDER/NAME for each NAME (a key of RUNS), or for all of RUNS if none is given.
Use a folder such as /texts, whose name tells nothing about the machine: a run folder stores the
absolute path of its text, and the checksum in meta.json covers that path. Never record a stored run
again, because it must stay as an earlier version wrote it. If the format of a run folder changes,
record a new run.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
TEXT = "speeches.txt"
STOPPED_AT, STEPS = 40, 60
SHAPE = {"n_layer": 1, "n_head": 2, "n_embd": 16, "block_size": 16, "bias": False}
TRAIN = {
    "max_steps": STEPS,
    "batch_size": 4,
    "eval_every": 15,
    "checkpoint_every": STEPS,
    "sample_every": 30,
    "log_every": 5,
}
RUN = {"device": "cpu", "dtype": "float32", "engine": "torch", "threads": 1}
RUNS: dict[str, dict[str, Any]] = {
    "modern-char-muon": {
        "tokenizer": {"kind": "char"},
        "model": {**SHAPE, "arch": "modern"},
        "train": {**TRAIN, "optimizer": "muon"},
    },
    "gpt2-bpe-adamw": {
        "tokenizer": {"kind": "bpe", "vocab_size": 280},
        "model": {**SHAPE, "arch": "gpt2", "bias": True},
        "train": {**TRAIN, "optimizer": "adamw", "learning_rate": 0.01},
    },
    "modern-byte-adamw": {
        "tokenizer": {"kind": "byte"},
        "model": {**SHAPE, "arch": "modern", "n_embd": 8},
        "train": {**TRAIN, "optimizer": "adamw", "learning_rate": 0.01, "grad_accum": 2},
    },
    "gpt2-user-parts": {
        "tokenizer": {"kind": "bpe", "vocab_size": 270},
        "model": {**SHAPE, "arch": "gpt2", "n_embd": 8},
        "train": {**TRAIN, "optimizer": "muon"},
    },
}
PARTS = ("attention", "layernorm", "mlp", "tokenizer")
# A program that runs gptcli and sends it Ctrl-C after step STOPPED_AT, however fast the machine is.
INTERRUPTED = f"""
import os, signal, sys
from gptcli.training import loop

def train(*arguments, plain=loop.train, **more):
    for event in plain(*arguments, **more):
        yield event
        if type(event).__name__ == "StepDone" and event.step == {STOPPED_AT}:
            os.kill(os.getpid(), signal.SIGINT)

loop.train = train
from gptcli.cli import main
sys.argv[0] = "gptcli"
main()
"""


def parts_of(name: str, folder: Path) -> list[str]:
    """The options that name the user's parts of a run, such as --attention.

    Most runs have no user's parts."""
    if name != "gpt2-user-parts":
        return []
    return [word for part in PARTS for word in (f"--{part}", str(folder / f"{part}.py"))]


def gptcli(*words: object, code: int = 0, start: tuple[str, ...] = ("-m", "gptcli")) -> str:
    """Run `gptcli WORDS`, check its exit code, and return its standard output."""
    command = [sys.executable, *start, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == code, (command, done.returncode, done.stderr)
    return done.stdout


def record(name: str, folder: Path) -> None:
    """Train a run, and stop it after step STOPPED_AT.

    Write what gptcli prints about this run to expected.json."""
    parts = parts_of(name, HERE / name)
    text, run = folder / TEXT, folder / name / "run"
    shutil.rmtree(folder / name, ignore_errors=True)
    run.parent.mkdir()
    config = run.parent / "config.yaml"
    sections = {"data": {"source": str(text)}, **RUNS[name], "run": RUN}
    config.write_text(json.dumps(sections))
    gptcli("train", config, "--out", run, *parts, code=130, start=("-c", INTERRUPTED))
    config.unlink()
    (run / ".lock").unlink()
    resumed = run.parent / "resumed"
    shutil.copytree(run, resumed)
    result = gptcli("train", "--resume", "--out", resumed, "--json", *parts)
    machine = ("--device", "cpu", "--dtype", "float32", "--threads", "1")
    sample = ("--temperature", "0", "--max-new-tokens", "60", "--prompt", "KING:", "--json")
    expected: dict[str, Any] = {}
    for which in ("last", "best"):
        chosen = ("--checkpoint", which, *machine, *parts)
        evaluated = json.loads(gptcli("eval", run, "--json", *chosen))
        score = json.loads(gptcli("score", run, text, "--json", *chosen))
        expected[which] = {
            "step": evaluated["checkpoint"],
            "text": json.loads(gptcli("sample", run, *sample, *chosen))["text"],
            "loss": evaluated["loss"],
            "tokens": evaluated["tokens"],
            "score": {
                "log_probability": score["log_probability"],
                "tokens": score["tokens"],
                "first": [
                    [token["id"], token["text"], token["log_probability"]]
                    for token in score["scores"][:20]
                ],
            },
        }
    resumed_result = json.loads(result)
    expected["resumed"] = {
        key: resumed_result[key]
        for key in ("resumed_from", "steps", "tokens", "train_loss", "val_loss", "best_val_loss")
    }
    weights = resumed / "checkpoints" / f"step-{STEPS:08d}" / "model.safetensors"
    shutil.copy(weights, run.parent / "resumed.safetensors")
    tokenizer = parts[-2:]  # inspect-batch takes no user's part except the tokenizer
    expected["batch"] = gptcli("inspect-batch", run, STOPPED_AT, *tokenizer)
    shutil.rmtree(resumed)
    for part in PARTS if parts else ():
        shutil.copy(HERE / name / f"{part}.py", run.parent)
    (run.parent / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")


def main() -> None:
    folder = Path(sys.argv[1])
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["GPTCLI_CACHE"] = str(folder / "cache")
    shutil.copy(HERE / TEXT, folder)
    for name in sys.argv[2:] or RUNS:
        record(name, folder)


if __name__ == "__main__":
    main()
