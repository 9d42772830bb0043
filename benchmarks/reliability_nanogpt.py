"""Kills nanoGPT's unchanged train.py, to compare it with gptcli.

The part `kills` of benchmarks/reliability.py kills gptcli in the same way. nanoGPT keeps one
checkpoint, which torch.save overwrites in place. Here nanoGPT saves after every fifth step. Its
network has the size of the network that gptcli trains in the part `kills`. $NANOGPT names a
checkout of nanoGPT.
"""

from __future__ import annotations

import importlib
import os
import random
import runpy
import signal
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.reliability_outcome import Outcome
from benchmarks.reliability_processes import Training
from benchmarks.reliability_runs import EVERY, STEPS, Workshop

_VOCABULARY = 65
# The pickle of {"vocab_size": 65}, for the file meta.pkl. Without it, train.py would use GPT-2's
# vocabulary.
_META = b"(dVvocab_size\nI65\ns."
_WORDS = [
    "--device=cpu", "--compile=False", "--dtype=float32", "--dataset=tiny", "--out_dir=out",
    f"--eval_interval={EVERY}", "--eval_iters=1", "--log_interval=1",
    "--always_save_checkpoint=True", f"--max_iters={STEPS}", f"--lr_decay_iters={STEPS}",
    "--gradient_accumulation_steps=2", "--batch_size=4", "--block_size=16",
    "--n_layer=1", "--n_head=2", "--n_embd=32", "--dropout=0.1",
]  # fmt: skip


class TheirTraining(Training):
    """nanoGPT's `python train.py WORDS` in a separate process."""

    def _child(self, words: list[str], prepare: object) -> None:
        code = 70
        try:
            folder = self._out.parent
            for number, path in ((1, self._out), (2, self._err)):
                os.dup2(os.open(path, os.O_WRONLY | os.O_APPEND), number)
            sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
            os.chdir(folder)
            script = Path(os.environ["NANOGPT"]) / "train.py"
            sys.path.insert(0, str(script.parent))
            sys.argv = ["train.py", *words]
            runpy.run_path(str(script), run_name="__main__")
            code = 0
        except BaseException as error:
            sys.stderr.write(f"{type(error).__name__}: {error}\n")
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)

    def has_begun(self) -> bool:
        """Whether the training has finished a step."""
        return "\niter " in self._out.read_text("utf-8", "replace")

    def has_saved(self) -> bool:
        """Whether the training has finished writing a checkpoint."""
        return (
            "\niter " in self._out.read_text("utf-8", "replace").partition("saving checkpoint")[2]
        )


def kills(shop: Workshop, trial: int, chance: random.Random) -> Outcome:
    """Kill a nanoGPT run at random times after its first checkpoint, and resume it after each kill.
    Return when the run has made all steps, cannot be resumed, or was started 40 times."""
    outcome = Outcome()
    with tempfile.TemporaryDirectory(dir=shop.folder) as name:
        folder = Path(name)
        data = folder / "data" / "tiny"
        data.mkdir(parents=True)
        script = Path(os.environ["NANOGPT"]) / "configurator.py"
        (folder / "configurator.py").write_bytes(script.read_bytes())
        for split in ("train", "val"):
            ids = np.random.default_rng(0).integers(0, _VOCABULARY, 20_000, dtype=np.uint16)
            ids.tofile(data / f"{split}.bin")
        (data / "meta.pkl").write_bytes(_META)
        start, seconds = _uninterrupted(shop, folder)
        words = _WORDS
        for _ in range(40):
            training = TheirTraining(words, folder)
            if words is _WORDS:
                training.until(training.has_saved)
            elif chance.random() < 0.5:  # if false, the kill can come during start-up
                training.until(training.has_begun)
            else:
                time.sleep(chance.uniform(0.0, 1.0) * start)
            time.sleep(chance.uniform(0.0, 0.6) * seconds)
            if training.running():
                training.send(signal.SIGKILL)
                outcome.count("kills")
            code = training.wait()
            if code == 0:
                break
            if code != -signal.SIGKILL:
                last = training.said().strip().splitlines()[-1:]
                outcome.failures.append(f"trial {trial}: cannot be resumed: {last}")
                break
            words = [*_WORDS, "--init_from=resume"]
        outcome.count("runs")
    return outcome


def _uninterrupted(shop: Workshop, folder: Path) -> tuple[float, float]:
    """The seconds of an undisturbed run until its first step is done, and the seconds after that.
    The first call measures both."""
    if not hasattr(shop, "nanogpt_seconds"):
        importlib.import_module("torch._dynamo")  # nanoGPT's optimizer imports it
        training = TheirTraining(_WORDS, folder)
        begun = time.perf_counter()
        training.until(training.has_begun)
        start = time.perf_counter() - begun
        code = training.wait()
        assert code == 0, training.last_words()
        (folder / "out" / "ckpt.pt").unlink()
        shop.nanogpt_seconds = start, training.seconds - start  # type: ignore[attr-defined]
    start, seconds = shop.nanogpt_seconds  # type: ignore[attr-defined]
    return start, seconds
