"""`gptcli.train` makes the same run as the command `gptcli train`.

If the user's loop over the events ends early, the run is saved.
"""

from __future__ import annotations

import io
import json
import math
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

import gptcli
from gptcli.cli import main
from gptcli.config import Config
from gptcli.files import durable
from gptcli.training import minutes
from gptcli.training.minutes import fit_to_minutes
from gptcli.training.opening_text import open_text
from tests.conftest import SMALL, TEXT

STEPS = 12
OVERRIDES = (*SMALL, f"train.max_steps={STEPS}", "train.eval_every=4", "run.device=cpu")


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("speeches.txt").write_text(TEXT, encoding="utf-8", newline="\n")


@pytest.fixture(scope="module")
def by_command(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the command `gptcli train` on the small text, with a smaller config `tiny`."""
    folder = tmp_path_factory.mktemp("command")
    (folder / "speeches.txt").write_text(TEXT, encoding="utf-8", newline="\n")
    arguments = ["tiny", f"data.source={folder / 'speeches.txt'}", *OVERRIDES]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["gptcli", "train", *arguments, "--out", str(folder / "run")])
        patch.setattr(sys, "stdout", io.StringIO())
        patch.setattr(sys, "stderr", io.StringIO())
        with pytest.raises(SystemExit) as ended:
            main()
    assert ended.value.code == 0
    return folder / "run"


def small(out: str = "runs/mine", more: Sequence[str] = (), **options: Any) -> gptcli.Training:
    words = ["data.source=speeches.txt", *OVERRIDES, *more]
    return gptcli.train("tiny", words, out=out, **options)


def weights(run: Path | str, step: int = STEPS) -> bytes:
    return (Path(run) / "checkpoints" / f"step-{step:08}" / "model.safetensors").read_bytes()


def lines(run: Path | str) -> list[dict[str, Any]]:
    """The records of a run's metrics.jsonl, without the times and speeds."""
    text = (Path(run) / "metrics.jsonl").read_text("utf-8")
    clocks = ("seconds", "tokens_per_second")
    return [
        {key: value for key, value in json.loads(line).items() if key not in clocks}
        for line in text.splitlines()
    ]


# ---- the same run as the command makes -----------------------------------------------------------


def test_the_run_is_that_of_the_command(
    by_command: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    training = small()
    assert repr(training) == "<Training: not begun; iterate over it, or call finish()>"
    assert not Path("runs").exists()
    events = list(training)
    assert handlers == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    assert capfd.readouterr() == ("", "")
    run = Path("runs/mine")
    assert weights(run) == weights(by_command)
    assert lines(run) == lines(by_command)
    name = "tokenizer.json"
    assert (run / name).read_bytes() == (by_command / name).read_bytes()
    configs = [yaml.safe_load((path / "config.yaml").read_text("utf-8"))
               for path in (run, by_command)]  # fmt: skip
    for config in configs:
        assert Path(config["data"].pop("source")).name == "speeches.txt"
    assert configs[0] == configs[1]
    status = json.loads((run / "run.json").read_text("utf-8"))
    expected = json.loads((by_command / "run.json").read_text("utf-8"))
    assert status.keys() == expected.keys()
    assert (status["val_loss"], status["stopped"]) == (expected["val_loss"], "done")

    steps = [event for event in events if isinstance(event, gptcli.StepDone)]
    assert [event.step for event in steps] == list(range(1, STEPS + 1))
    found = [event.val_loss for event in events if isinstance(event, gptcli.Evaluated)]
    assert found == [line["val_loss"] for line in lines(run) if line["kind"] == "eval"]
    last = events[-1]
    assert isinstance(last, gptcli.Finished)
    assert (last.run, last.step, last.stopped) == (run, STEPS, "done")
    assert (training.run, training.finished) == (run, last)
    assert repr(training) == f"<Training of {run}: done at step {STEPS}>"
    assert gptcli.load(last.run).step == last.best_step


def as_dict() -> dict[str, Any]:
    values: dict[str, Any] = yaml.safe_load(Path("tiny.yaml").read_text("utf-8"))
    return values | {"data": {**values["data"], "source": Path("speeches.txt")}}


@pytest.mark.parametrize(
    "config",
    [
        lambda: ("tiny.yaml", {"data.source": Path("speeches.txt")}),
        lambda: (Path("tiny.yaml"), {"data": {"source": "speeches.txt"}}),
        lambda: (as_dict(), {}),
        lambda: (gptcli.load("command").config.model_copy(), {}),
    ],
    ids=["file", "path", "dict", "Config"],
)
def test_every_form_of_a_config_gives_the_same_run(
    config: Callable[[], Any], by_command: Path
) -> None:
    from gptcli.config import Config
    from gptcli.config_files import dump_config
    from gptcli.training.run_folder import read_config

    Path("runs").mkdir()
    shutil.copytree(by_command, "runs/command")
    stored = read_config(by_command)
    Path("tiny.yaml").write_text(dump_config(stored), encoding="utf-8")
    given, overrides = config()
    if isinstance(given, Config):
        overrides = {"data.source": "speeches.txt"}
    last = gptcli.train(given, overrides, out="runs/mine").finish()
    assert (last.step, weights("runs/mine") == weights(by_command)) == (STEPS, True)


def test_overrides_as_a_dict() -> None:
    from gptcli.api.training import _words
    from gptcli.config_files import parse_config

    values = {
        "data.source": "it's [a] #1.txt",
        "model": {"n_layer": 3, "n_embd": 96},
        "train.learning_rate": 3e-4,
        "train.patience": None,
        "data.skip_undecodable": True,
        "tokenizer.kind": "byte",
        "run.threads": "auto",
    }
    config = parse_config("{}", _words(values))
    assert config.data.source == "it's [a] #1.txt"
    assert (config.model.n_layer, config.model.n_embd) == (3, 96)
    assert config.data.skip_undecodable
    assert (config.train.learning_rate, config.train.patience) == (3e-4, None)
    assert (config.tokenizer.kind, config.run.threads) == ("byte", "auto")
    several = parse_config("{}", _words({"data.source": ["a.txt", Path("b 2.txt")]}))
    assert several.data.sources == ["a.txt", "b 2.txt"]
    assert _words(["train.max_steps=3"]) == ["train.max_steps=3"]


def test_a_text_gets_settings_that_fit_it() -> None:
    """gptcli.train chooses the same settings for a text as `gptcli train TEXT`. Notices say which
    settings it chose, and why."""
    values = {"train.max_steps": 2, "model.n_layer": 1, "model.n_embd": 32}
    events = list(gptcli.train(["speeches.txt"], values))
    notes = "\n".join(event.message for event in events if isinstance(event, gptcli.Notice))
    assert "n_layer: 1" in notes
    assert "block_size" in notes
    model = gptcli.load()
    assert (model.run, model.step) == (Path("runs/speeches"), 2)
    assert (model.config.model.n_layer, model.config.tokenizer.kind) == (1, "char")


@pytest.mark.slow
def test_minutes_end_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """The time of `minutes` begins when the loop over the events begins, not when `train` is
    called."""
    begins = []

    def fit(config: Config, limit: float, begun: float, *more: Any, **options: Any) -> Any:
        begins.append(begun)
        return fit_to_minutes(config, limit, begun, *more, **options)

    monkeypatch.setattr(minutes, "fit_to_minutes", fit)
    training = gptcli.train("speeches.txt", minutes=0.2)
    loop_begun = time.perf_counter()
    last = training.finish()
    assert last.stopped in ("done", "patience")
    assert begins
    assert begins[0] >= loop_begun
    assert gptcli.load().config.train.minutes == 0.2


@pytest.mark.slow
def test_a_run_of_the_users_parts(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from gptcli.model.attention import CausalSelfAttention\n", encoding="utf-8"
    )
    more = ["model.n_embd=16", "train.max_steps=3", "run.dtype=float32"]
    course = gptcli.train(
        "course", ["data.source=speeches.txt", *OVERRIDES, *more], attention="mine.py", out="own"
    )
    assert course.finish().step == 3
    model = gptcli.load("own", attention="mine.py")
    assert len(model.generate("KING", max_new_tokens=5, temperature=0)) == 5
    with pytest.raises(gptcli.GptcliError, match="attention"):
        gptcli.load("own")


def test_fine_tuning_starts_from_a_run(by_command: Path) -> None:
    more = {"train.max_steps": 2, "data.source": "speeches.txt"}
    last = gptcli.train(None, more, from_run=by_command, out="tuned").finish()
    assert (last.run, last.step) == (Path("tuned"), 2)
    status = json.loads(Path("tuned/run.json").read_text("utf-8"))
    assert status["started_from"]["run"] == str(by_command)


def test_no_progress_bar_of_the_text_on_a_terminal(
    by_command: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`gptcli train` shows a progress bar for texts that take over a second to read, but the
    function `gptcli.train` shows none."""
    monkeypatch.setattr("gptcli.corpus.progress.SILENT_SECONDS", -1.0)
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("GPTCLI_CACHE", str(Path("cache").absolute()))
    open_text(gptcli.load(by_command).config)
    assert "tokenizing" in terminal.getvalue()
    terminal.truncate(0)
    monkeypatch.setenv("GPTCLI_CACHE", str(Path("cache-2").absolute()))
    small().finish()
    assert terminal.getvalue() == ""


# ---- the loop ends early -------------------------------------------------------------------------


def until(training: gptcli.Training, step: int) -> None:
    for event in training:
        if isinstance(event, gptcli.StepDone) and event.step == step:
            break


def test_break_saves_and_the_resumed_run_is_the_same(by_command: Path) -> None:
    training = small()
    until(training, 5)
    assert training.finished is not None
    assert (training.finished.step, training.finished.stopped) == (5, "interrupted")
    assert weights("runs/mine", 5)
    status = json.loads(Path("runs/mine/run.json").read_text("utf-8"))
    assert (status["steps"], status["stopped"]) == (5, "interrupted")
    with pytest.raises(gptcli.GptcliError, match="only once"):
        iter(training)
    events = list(gptcli.train(resume=True, out="runs/mine"))
    started = next(event for event in events if isinstance(event, gptcli.RunStarted))
    assert started.resumed_from == 5
    assert weights("runs/mine") == weights(by_command)
    assert lines("runs/mine") == lines(by_command)
    done = list(gptcli.train(resume=True))
    assert isinstance(done[-1], gptcli.Finished)
    assert (done[-1].step, done[-1].stopped, len(done)) == (STEPS, "done", 2)
    assert isinstance(done[0], gptcli.Notice)
    assert "nothing to do" in done[0].message
    longer = gptcli.train(overrides={"train.max_steps": STEPS + 2}, resume=True, extend=True)
    assert longer.finish().step == STEPS + 2


def test_an_error_in_the_loop_saves() -> None:
    training = small()

    def fail() -> None:
        for event in training:
            if isinstance(event, gptcli.StepDone) and event.step == 3:
                raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert training.finished is not None
    assert (training.finished.stopped, gptcli.load("mine").step) == ("interrupted", 3)


def test_stop_ends_the_loop_after_its_step() -> None:
    training = small()
    events = []
    for event in training:
        events.append(event)
        if isinstance(event, gptcli.StepDone) and event.step == 3:
            thread = threading.Thread(target=training.stop)
            thread.start()
            thread.join()
    assert isinstance(events[-1], gptcli.Finished)
    assert (events[-1].step, events[-1].stopped) == (3, "interrupted")
    stopped = small("runs/other")
    stopped.stop()
    with pytest.raises(gptcli.GptcliError, match="stopped before its first step"):
        stopped.finish()
    assert not Path("runs/other").exists()


def test_training_in_a_thread(by_command: Path) -> None:
    """A training also works outside the main thread, although Python allows signal handlers only in
    the main thread."""
    found: list[gptcli.Finished] = []
    thread = threading.Thread(target=lambda: found.append(small().finish()))
    thread.start()
    thread.join()
    assert [last.stopped for last in found] == ["done"]
    assert weights("runs/mine") == weights(by_command)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has other signals")
def test_ctrl_c_saves_and_raises() -> None:
    training = small(more=["train.max_steps=100000"])

    def press() -> None:
        while training.run is None:
            time.sleep(0.001)
        time.sleep(0.05)
        # Terminals and notebooks send this signal if the user presses Ctrl-C or the stop button.
        signal.raise_signal(signal.SIGINT)

    thread = threading.Thread(target=press)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        training.finish()
    thread.join()
    assert training.finished is not None
    assert training.finished.stopped == "interrupted"
    assert weights("runs/mine", training.finished.step)


LEFT_OPEN = """
import gptcli

training = gptcli.train("tiny", ["data.source=speeches.txt", *{overrides!r}], out="runs/mine")
events = iter(training)
for event in events:
    if isinstance(event, gptcli.StepDone):
        break
"""


@pytest.mark.slow
def test_a_loop_that_is_open_at_the_end_of_the_program_is_saved() -> None:
    program = LEFT_OPEN.format(overrides=list(OVERRIDES))
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert weights("runs/mine", 1)


# ---- errors --------------------------------------------------------------------------------------


def test_a_wrong_request_is_an_error_at_once(by_command: Path) -> None:
    shutil.copytree(by_command, "runs/mine")
    for call, words in (
        (lambda: gptcli.train("tinny"), "no config or text file named `tinny`"),
        (lambda: gptcli.train({"model": {"n_layr": 1}}), "config: unknown key `model.n_layr`"),
        (lambda: gptcli.train("tiny", {"model.n_layer": "six"}), "model.n_layer"),
        (lambda: gptcli.train("tiny", {"model.n_layer": object()}), "is no value of a config"),
        (lambda: gptcli.train("tiny", "model.n_layer=1"), "overrides must be a dict"),
        (lambda: gptcli.train("tiny", None), "overrides must be a dict"),
        (lambda: gptcli.train("tiny", ["a=\ud800"]), "is not valid Unicode"),
        (lambda: gptcli.train("tiny", out=3), "out must be a text or a path; got int"),
        (lambda: gptcli.train("tiny", out="\ud800"), "out: no file can have the name"),
        (lambda: gptcli.train("tiny", from_run=[]), "from_run must be a text or a path; got list"),
        (lambda: gptcli.train("tiny", block=3), "block must be a text or a path; got int"),
        (lambda: gptcli.train("tiny", copy_to=3), "copy_to must be a text or a path; got int"),
        (lambda: gptcli.train("tiny", minutes="1"), "minutes must be a number above 0"),
        (lambda: gptcli.train("tiny", minutes=math.nan), "minutes must be a number above 0"),
        (lambda: gptcli.train(7), "config must name a config or texts; got int"),
        (lambda: gptcli.train([]), "a list of 0 texts"),
        (lambda: gptcli.train("tiny", extend=True), "extend needs resume"),
        (lambda: gptcli.train("tiny", force=True), "force needs attention"),
        (lambda: gptcli.train(resume=True, overwrite=True), "resume and overwrite cannot be used"),
        (lambda: gptcli.train("tiny", resume=True, minutes=1), "resume and minutes cannot be"),
        (lambda: gptcli.train("tiny", out=""), "names no folder"),
        (lambda: gptcli.train(resume=True, out="runs/other"), "no run named `runs/other`"),
        (lambda: gptcli.train("tiny", ["train.max_steps=3"], minutes=1), "cannot both be given"),
    ):
        with pytest.raises(gptcli.GptcliError) as caught:
            call()
        assert words in caught.value.message
        assert caught.value.hint


def test_an_error_comes_out_of_the_loop(by_command: Path) -> None:
    shutil.copytree(by_command, "runs/mine")
    with pytest.raises(gptcli.GptcliError, match="runs/mine exists already"):
        small().finish()
    assert weights("runs/mine") == weights(by_command)
    Path("speeches.txt").write_text("too short", encoding="utf-8")
    with pytest.raises(gptcli.GptcliError, match="speeches"):
        small("runs/other").finish()
    assert not Path("runs/other").exists()


def test_overwrite_keeps_the_old_run_until_the_new_one_has_a_checkpoint(by_command: Path) -> None:
    shutil.copytree(by_command, "runs/mine")
    training = small(overwrite=True)
    next(iter(training))  # the user's loop ends before the first step
    assert training.finished is not None
    assert small(overwrite=True).finish().stopped == "done"
    Path("speeches.txt").write_text("too short", encoding="utf-8")
    with pytest.raises(gptcli.GptcliError):
        small(overwrite=True).finish()
    assert weights("runs/mine") == weights(by_command)


def test_a_full_disk_at_the_end_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(durable.Disk):
        def rename(self, source: Path, goal: Path) -> None:
            if "step-" in goal.name:
                raise OSError(28, "No space left on device", str(goal))
            super().rename(source, goal)

    def fill_the_disk() -> None:
        for event in small():
            if isinstance(event, gptcli.RunStarted):
                monkeypatch.setattr(durable, "disk", Full())

    with pytest.raises(gptcli.GptcliError, match="No space left on device"):
        fill_the_disk()


def test_a_second_training_in_the_same_folder_is_refused() -> None:
    refused = small()
    for event in small():
        if isinstance(event, gptcli.StepDone) and event.step == 2:
            with pytest.raises(gptcli.GptcliError):
                refused.finish()
    assert gptcli.load("mine").step <= STEPS


def test_a_run_that_diverges_says_so_in_its_last_event() -> None:
    more = {
        "model.arch": "gpt2",
        "train.optimizer": "adamw",
        "train.learning_rate": 100,
        "train.weight_decay": 100,
        "train.warmup_steps": 0,
        "train.grad_clip": 0,
        "train.max_steps": 500,
    }
    words = [f"{key}={value}" for key, value in more.items()]
    training = gptcli.train("tiny", ["data.source=speeches.txt", *OVERRIDES, *words], out="far")
    last = training.finish()
    assert last.stopped == "diverged"
    assert last.diagnosis
    assert last.hint
