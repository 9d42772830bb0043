"""Measures how much time checkpoints, evaluations and logging take from a training.

    python benchmarks/checkpoint_cost.py                       # half an hour on two cores
    python benchmarks/checkpoint_cost.py --only "10.65 M" "124 M" --rounds 5
    python benchmarks/checkpoint_cost.py --tiny                # a quick test of the benchmark

For checkpoints, the program alternates two trainings of the same steps, each in a separate process.
One of them saves a checkpoint every N steps, and the other saves none. The cost of a checkpoint is
the difference of the median times, divided by the number of checkpoints. With one checkpoint per
minute, the share of a training's time that checkpoints take is cost / 60 s. The time of the first
steps, and of the save at the end of a run, does not count.

For evaluations and logging, the program starts whole processes of `gptcli train` with the default
config. Half of the runs evaluate and log at the intervals of `auto`; the other half have intervals
that are longer than the run. All runs evaluate after the last step. So the difference between the
two halves is the time of all evaluations but one. The program multiplies this difference by
evaluations / (evaluations - 1).

Run no other programs meanwhile. The exit code is 1 if a cost exceeds its limit.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from machine import header

ROOT = Path(__file__).resolve().parent.parent
NEVER = 10**9
WARM_UP = 3  # the number of first steps, which are not timed


@dataclass(frozen=True)
class Case:
    """A network, how often it saves checkpoints, and how much of the time they may take at most."""

    overrides: tuple[str, ...]
    every: int
    """The number of steps between checkpoints. These steps must take longer than writing a
    checkpoint."""
    checkpoints: int
    most: float
    """The largest share of the time that checkpoints may take, with one checkpoint per minute."""

    @property
    def steps(self) -> int:
        """The number of the last timed step. The next step would write one more checkpoint. So the
        timed steps last long enough to write the last timed checkpoint completely."""
        return self.every * (self.checkpoints + 1) - 1


_GPT2 = ("model.arch=gpt2", "train.optimizer=adamw", "model.dropout=0.0")
CASES = {
    "10.65 M": Case(
        (*_GPT2, "tokenizer.kind=char", "model.n_layer=6", "model.n_head=6", "model.n_embd=384",
         "model.block_size=256", "train.batch_size=12"),
        every=40, checkpoints=5, most=0.01,
    ),
    "124 M": Case(
        (*_GPT2, "tokenizer.kind=gpt2", "model.n_layer=12", "model.n_head=12", "model.n_embd=768",
         "model.block_size=1024", "train.batch_size=1"),
        every=20, checkpoints=3, most=0.05,
    ),
}  # fmt: skip
TINY = {
    "tiny": Case(
        (*_GPT2, "tokenizer.kind=char", "model.n_layer=1", "model.n_head=2", "model.n_embd=64",
         "model.block_size=32", "train.batch_size=4"),
        every=10, checkpoints=3, most=1.0,
    )
}  # fmt: skip
EVALUATING = "evaluations and logging"
MOST_EVALUATING = 0.02


def main() -> None:
    """Run the chosen cases, and print the tables of their costs.

    With --one (for a separate process) train once, and print the result as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="+", choices=(*CASES, EVALUATING), help="default: all")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--every", type=int, help="steps between checkpoints")
    parser.add_argument("--checkpoints", type=int, help="checkpoints in a run")
    parser.add_argument(
        "--runs",
        type=Path,
        help="write the runs into this folder, on the disk to be measured (default: TMPDIR)",
    )
    parser.add_argument(
        "--tiny", action="store_true", help="tiny shapes, to test the benchmark itself"
    )
    parser.add_argument("--one", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        print(json.dumps(train_one(**json.loads(asked.one))))
        return
    cases = TINY if asked.tiny else CASES
    chosen = asked.only or (*cases, EVALUATING)
    rows, over = [], False
    for name, case in cases.items():
        if name in chosen:
            case = replace(
                case,
                every=asked.every or case.every,
                checkpoints=asked.checkpoints or case.checkpoints,
            )
            row, share = checkpoint_row(name, case, asked.rounds, asked.runs)
            rows.append(row)
            over |= share > case.most
    print(f"{header()}\n")
    print(
        "| network | steps | time without checkpoints | time with checkpoints "
        "| number of checkpoints | time of one checkpoint "
        "| share of the training's time with one checkpoint a minute | limit of this share |"
    )
    print("|---|---|---|---|---|---|---|---|")
    print("\n".join(rows))
    if EVALUATING in chosen:
        row, share = evaluating_row(asked.rounds, asked.runs, asked.tiny)
        print("\n| default config | intervals auto | never | evaluations | share | limit |")
        print(f"|---|---|---|---|---|---|\n{row}")
        over |= share > MOST_EVALUATING and not asked.tiny
    sys.exit(1 if over else 0)


# ---- checkpoints -----------------------------------------------------------------------------


def checkpoint_row(name: str, case: Case, rounds: int, runs: Path | None) -> tuple[str, float]:
    """A row of the table, and the share of training time that one checkpoint per minute takes."""
    found: dict[str, list[float]] = {"without": [], "with": []}
    saved = 0
    for number in range(rounds):
        # The runs with and without checkpoints come first in turn, so a machine that slows down
        # hardly favours one of them.
        for side in ("without", "with") if number % 2 == 0 else ("with", "without"):
            told = one(case, side == "with", runs)
            found[side].append(told["seconds"])
            saved = max(saved, int(told["saved"]))
            print(f"{name}, round {number + 1}, {side}: {told}", file=sys.stderr, flush=True)
    without, with_them = (statistics.median(found[side]) for side in ("without", "with"))
    takes = (with_them - without) / max(1, saved)
    share = takes / 60
    spread = max(max(values) - min(values) for values in found.values())
    row = (
        f"| {name} | {case.steps - WARM_UP} | {without:.1f} s | {with_them:.1f} s | {saved} | "
        f"{takes:.2f} s (± {spread / max(1, saved):.2f}) | {share:.2%} | {case.most:.0%} |"
    )
    return row, share


def one(case: Case, saving: bool, runs: Path | None) -> dict[str, float]:
    """Run `train_one` in a separate process and return its result."""
    words = [sys.executable, __file__, "--one"]
    words.append(json.dumps({"case": asdict(case), "saving": saving, "runs": str(runs or "")}))
    return dict(json.loads(subprocess.run(words, check=True, stdout=subprocess.PIPE).stdout))


def train_one(case: dict, saving: bool, runs: str) -> dict[str, float]:
    """Train. Return how many seconds the steps after the warm-up took, and how many checkpoints
    were saved."""
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # as gptcli's command line sets it
    sys.path.insert(0, str(ROOT))
    from gptcli.config_files import parse_config
    from gptcli.events import CheckpointSaved, StepDone
    from gptcli.training.loop import train
    from gptcli.training.setup import prepare_new

    shape = Case(**case)
    begin = end = 0.0
    saved: list[int] = []
    with tempfile.TemporaryDirectory(dir=runs or None, ignore_cleanup_errors=True) as folder:
        config = parse_config(
            "",
            [
                "data.source=shakespeare",
                *shape.overrides,
                f"train.max_steps={shape.steps + 1}",
                f"train.checkpoint_every={shape.every if saving else NEVER}",
                f"train.eval_every={NEVER}",
                f"train.log_every={NEVER}",
            ],
        )
        events = train(prepare_new(config, Path(folder) / "run").setup)
        for event in events:
            if isinstance(event, CheckpointSaved):
                saved.append(event.step)
            elif isinstance(event, StepDone) and event.step == WARM_UP:
                begin = time.perf_counter()
            elif isinstance(event, StepDone) and event.step == shape.steps:
                end = time.perf_counter()
                break
        assert len(saved) == (shape.checkpoints if saving else 0), saved
    return {"seconds": end - begin, "saved": len(saved)}


# ---- evaluations and logging -----------------------------------------------------------------


def evaluating_row(rounds: int, runs: Path | None, tiny: bool) -> tuple[str, float]:
    """A row of the table, and the share of training time that evaluations and logging take."""
    sides = {
        "auto": ("train.eval_every=auto", "train.log_every=auto"),
        "never": (f"train.eval_every={NEVER}", f"train.log_every={NEVER}"),
    }
    found: dict[str, list[float]] = {side: [] for side in sides}
    evaluations = 0
    for number in range(rounds):
        for side in sides if number % 2 == 0 else reversed(sides):
            with tempfile.TemporaryDirectory(dir=runs, ignore_cleanup_errors=True) as folder:
                run = Path(folder) / "run"
                words = [sys.executable, "-m", "gptcli", "train", *(["tiny"] if tiny else [])]
                words += ["train.sample_every=0", *sides[side], "--out", str(run)]
                begin = time.perf_counter()
                subprocess.run(words, check=True, cwd=ROOT, stderr=subprocess.DEVNULL,
                               stdout=subprocess.DEVNULL)  # fmt: skip
                found[side].append(time.perf_counter() - begin)
                if side == "auto":
                    lines = (run / "metrics.jsonl").read_text("utf-8").splitlines()
                    evaluations = sum(json.loads(line)["kind"] == "eval" for line in lines)
            print(f"{side}, round {number + 1}: {found[side][-1]:.2f} s", file=sys.stderr)
    auto, never = (statistics.median(found[side]) for side in sides)
    share = (auto - never) / auto * evaluations / max(1, evaluations - 1)
    row = (
        f"| {'tiny' if tiny else 'shakespeare'} | {auto:.1f} s | {never:.1f} s | {evaluations} "
        f"| {share:.1%} | {MOST_EVALUATING:.0%} |"
    )
    return row, share


if __name__ == "__main__":
    main()
