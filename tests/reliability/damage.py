"""Trials that damage random files of a run folder or of a token cache: does gptcli notice the
damage?

One trial damages one file in one way. Then the trial loads the run as `sample` and `--resume` do,
or opens the token cache again. The trial passes under two conditions: gptcli loads no wrong values,
and either a message names the damaged file or the file still means the same.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gptcli.config_files import parse_config
from gptcli.corpus import open_corpus
from gptcli.errors import GptcliError
from gptcli.training import checkpoint, run_folder
from gptcli.training.consistency import same_config, same_tokenizer
from gptcli.training.loading import load_trained
from gptcli.training.loop import train
from gptcli.training.setup import prepare_new

STEPS = (4, 8, 12)
SETTINGS = (
    "model.n_layer=1",
    "model.n_head=2",
    "model.n_embd=16",
    "model.block_size=16",
    "train.batch_size=4",
    "train.max_steps=12",
    "train.checkpoint_every=4",
    "train.keep_checkpoints=3",
    "train.eval_every=4",
    "run.threads=1",
    "run.device=cpu",
    "run.dtype=float32",
    "run.engine=torch",
)


def train_small_run(run: Path, text: Path) -> Path:
    """Train a run that has checkpoints of all STEPS. Mark the checkpoint of step 8 as the best.
    Return the run folder."""
    config = parse_config("", [f"data.source={text}", *SETTINGS])
    for _ in train(prepare_new(config, run).setup):
        pass
    for step in STEPS[1:]:
        saved = checkpoint.load(run, step, with_state=True)
        progress = {**saved.meta["progress"], "best_step": 8}
        checkpoint.save(run, step, saved.model, saved.state, {**saved.meta, "progress": progress})
    checkpoint.mark_best(run, 8)
    assert tuple(checkpoint.steps_of(run)) == STEPS
    return run


# ---- ways to damage a file -------------------------------------------------------------------

Damage = Callable[[Path, random.Random, list[Path]], None]


def flip_bit(path: Path, draw: random.Random, others: list[Path]) -> None:
    data = bytearray(path.read_bytes())
    place = draw.randrange(8 * len(data))
    data[place // 8] ^= 1 << place % 8
    path.write_bytes(bytes(data))


def cut_off(path: Path, draw: random.Random, others: list[Path]) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: draw.randrange(len(data))])


def lengthen(path: Path, draw: random.Random, others: list[Path]) -> None:
    path.write_bytes(path.read_bytes() + draw.randbytes(draw.randrange(1, 4096)))


def zero_page(path: Path, draw: random.Random, others: list[Path]) -> None:
    """Set a block of 512 bytes to zero, as if the disk had lost the block."""
    data = bytearray(path.read_bytes())
    place = draw.randrange(len(data)) // 512 * 512
    data[place : place + 512] = bytes(len(data[place : place + 512]))
    path.write_bytes(bytes(data))


def remove(path: Path, draw: random.Random, others: list[Path]) -> None:
    path.unlink()


def exchange(path: Path, draw: random.Random, others: list[Path]) -> None:
    """Replace the content of `path` by the content of a random file of `others`."""
    path.write_bytes(draw.choice(others).read_bytes())


DAMAGES: tuple[Damage, ...] = (flip_bit, flip_bit, cut_off, lengthen, zero_page, remove, exchange)


@contextmanager
def undo_damage(path: Path) -> Iterator[None]:
    """Restore the content of `path` at the end of the `with` block."""
    data = path.read_bytes()
    try:
        yield
    finally:
        path.write_bytes(data)


# ---- whether the damage is noticed -----------------------------------------------------------


@dataclass(frozen=True)
class Trial:
    """One damaged file, the kind of damage, and the outcome.

    The outcome is "found", "harmless", or a description of the failure."""

    file: str
    damage: str
    outcome: str


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


class RunTrials:
    """Trials that damage the files of a run folder."""

    def __init__(self, run: Path) -> None:
        self.run = run
        self.whole = {step: checkpoint.load(run, step, with_state=True) for step in STEPS}
        self.config = run_folder.read_config(run)
        folders = [checkpoint.folder_of(run, step) for step in STEPS]
        self.files = [path for folder in folders for path in sorted(folder.iterdir())]
        self.files += [run / "checkpoints" / "best", run / "tokenizer.json", run / "config.yaml"]

    def one(self, seed: int) -> Trial:
        draw = random.Random(seed)
        path, damage = draw.choice(self.files), draw.choice(DAMAGES)
        others = [other for other in self.files if other.read_bytes() != path.read_bytes()]
        name = str(path.relative_to(self.run))
        with undo_damage(path):
            damage(path, draw, others)
            outcomes = {self.resumed(path), self.sampled(path)}
        bad = outcomes - {"found", "harmless", "not read"}
        outcome = min(bad) if bad else "found" if "found" in outcomes else "harmless"
        if outcomes == {"not read"}:
            outcome = "nobody reads it"
        return Trial(name, damage.__name__, outcome)

    def resumed(self, path: Path) -> str:
        """The outcome if `train --resume` reads the run in which `path` is damaged.

        `--resume` tries the newest checkpoint first."""
        try:
            saved, notes = checkpoint.newest_valid(self.run)
            assert saved is not None
            notes += self.check_other_files(saved)
        except GptcliError as error:
            return self.named(path, [error.message])
        if not self.right(saved, with_state=True):
            return "loaded other numbers than were saved"
        step = self.step_of(path)
        if step == STEPS[-1]:
            if saved.step != STEPS[-2]:
                return f"resumed from step {saved.step} with a damaged step {step}"
            return self.named(path, notes)
        if saved.step != STEPS[-1]:
            return f"resumed from step {saved.step} though the newest was valid"
        return self.small_file(path, notes)

    def sampled(self, path: Path) -> str:
        """The outcome if `sample` or `eval` reads the run in which `path` is damaged.

        First loads the run without --checkpoint. gptcli then prefers the best checkpoint. If `path`
        belongs to a checkpoint, also loads this checkpoint, as with --checkpoint STEP."""
        try:
            trained = load_trained(self.run, None, device=torch.device("cpu"), dtype=torch.float32)
        except GptcliError as error:
            return self.named(path, [error.message])
        weights = dict(trained.model.named_parameters())
        if not all(
            torch.equal(tensor, weights[name])
            for name, tensor in self.whole[trained.step].model.items()
        ):
            return "sampled from other weights than were saved"
        step = self.step_of(path)
        if step is None:
            return self.small_file(path, trained.notes)
        usual = 12 if step == 8 and path.name != "state.safetensors" else 8
        if trained.step != usual and not self.unchanged(path, step):
            return f"sampled from step {trained.step}"
        try:
            checkpoint.load(self.run, step, with_state=True)
        except GptcliError as error:
            return self.named(path, [error.message])
        return "harmless" if self.unchanged(path, step) else "a damaged step was loaded"

    def check_other_files(self, saved: checkpoint.Checkpoint) -> list[str]:
        """Compare config.yaml and tokenizer.json with the checkpoint, as `prepare_resume` does.
        Return the notes about changes."""
        notes = same_config(self.run, saved.meta, run_folder.read_config(self.run))
        same_tokenizer(self.run, run_folder.read_tokenizer(self.run), saved.meta)
        return notes

    def step_of(self, path: Path) -> int | None:
        return int(path.parent.name[5:]) if path.parent.name.startswith("step-") else None

    def unchanged(self, path: Path, step: int) -> bool:
        """Whether `path` still exists and means the same.

        The meaning is the same if the damage changes only the spelling of a value in meta.json
        (`1E-3` instead of `1e-3`)."""
        if not path.is_file():
            return False
        try:
            if path.name == "meta.json":
                return checkpoint.read_meta(self.run, step) == self.whole[step].meta
            return self.right(checkpoint.load(self.run, step, with_state=True), with_state=True)
        except GptcliError:
            return False

    def right(self, saved: checkpoint.Checkpoint, with_state: bool) -> bool:
        whole = self.whole[saved.step]
        state = same(saved.state, whole.state) if with_state else True
        return same(saved.model, whole.model) and state and saved.meta == whole.meta

    def small_file(self, path: Path, notes: list[str]) -> str:
        """The outcome for a damaged file that is not part of the loaded checkpoint.

        It is "found" if a note names the file, "harmless" if the damage does not change what the
        file means, and "not read" if the file belongs to the checkpoint of another step."""
        if self.named(path, notes) == "found":
            return "found"
        if path.name == "best":
            return "harmless" if checkpoint.find_best_step(self.run)[0] == 8 else "another best"
        if path.name == "config.yaml":
            config = run_folder.read_config(self.run)
            # A damaged path of the text is harmless, because a resume accepts only a text with the
            # recorded content.
            other = config.data.source != self.config.data.source
            return "harmless" if other or config == self.config else "another config"
        return "not read" if self.step_of(path) is not None else "harmless"

    def named(self, path: Path, messages: list[str]) -> str:
        if any(str(path) in message for message in messages):
            return "found"
        return f"not named: {'; '.join(messages) or 'no message'}"


class CacheTrials:
    """Trials that damage a token cache."""

    def __init__(self, text: Path, cache: Path) -> None:
        self.text, self.cache = text, cache
        self.ids = self.read()[0]
        (self.entry,) = (cache / "corpus").iterdir()
        self.files = sorted(self.entry.iterdir())

    def read(self) -> tuple[Any, list[str]]:
        corpus = open_corpus(
            str(self.text),
            kind="char",
            vocab_size=0,
            val_fraction=0.0,
            block_size=8,
            cache=self.cache,
            progress=False,
        )
        return corpus.train.read(0, len(corpus.train)).tolist(), corpus.notes

    def one(self, seed: int) -> Trial:
        draw = random.Random(seed)
        path, damage = draw.choice(self.files), draw.choice(DAMAGES)
        others = [other for other in self.files if other != path]
        damage(path, draw, others)
        ids, notes = self.read()
        outcome = "found"
        if ids != self.ids:
            outcome = "read other tokens than were prepared"
        elif not any(f"{path} is missing or damaged" in note for note in notes):
            outcome = f"not named: {'; '.join(notes) or 'no message'}"
            if not notes and path.name == "meta.json":
                outcome = "harmless"
        return Trial(f"cache/{path.name}", damage.__name__, outcome)


def run_trials(run: Path, text: Path, cache: Path, count: int, seed: int = 0) -> list[Trial]:
    """Run `count` trials.

    Every fifth trial damages the token cache. The others damage a copy of the run folder."""
    copy = run.with_name(f"{run.name}-damaged")
    shutil.copytree(run, copy)
    try:
        of_run, of_cache = RunTrials(copy), CacheTrials(text, cache)
        return [
            (of_cache if number % 5 == 4 else of_run).one(seed + number) for number in range(count)
        ]
    finally:
        shutil.rmtree(copy)


def failures(trials: list[Trial]) -> list[Trial]:
    return [trial for trial in trials if trial.outcome not in ("found", "harmless")]
