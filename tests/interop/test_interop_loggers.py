"""The loggers TensorBoard, trackio and wandb store all that metrics.jsonl and samples.txt hold."""

from __future__ import annotations

import html
import json
import shutil
import sqlite3
import struct
from collections.abc import Iterator
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from gptcli.loggers.rows import Row, Rows, Sample
from gptcli.loggers.run_clock import run_clock
from tests.conftest import SMALL

PACKAGES = ("tensorboard", "trackio", "wandb")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


def needs(name: str) -> Any:
    missing = find_spec(name) is None
    return pytest.param(name, marks=pytest.mark.skipif(missing, reason=f"needs the extra `{name}`"))


Points = dict[str, dict[int, tuple[float, float]]]
"""Metric -> step -> (value, Unix time)."""


class Found:
    """The content of a log: its points (metrics), its samples as (step, text), and its config."""

    def __init__(self) -> None:
        self.points: Points = {}
        self.samples: list[tuple[int, str]] = []
        self.config: dict[str, Any] = {}

    def add(self, name: str, step: int, value: float, time: float) -> None:
        points = self.points.setdefault(name, {})
        assert step not in points, f"{name} is there twice for step {step}"
        assert step > max(points, default=-1), f"{name} goes back to step {step}"
        points[step] = value, time


def read_tensorboard(folder: Path) -> Found:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    events = EventAccumulator(str(folder), size_guidance={"tensors": 0})
    events.Reload()
    found = Found()
    for tag in events.Tags()["tensors"]:
        if tag == "_hparams_/session_start_info":
            data = HParamsPluginData.FromString(events.SummaryMetadata(tag).plugin_data.content)
            found.config = {
                key: getattr(value, value.WhichOneof("kind"))
                for key, value in data.session_start_info.hparams.items()
            }
            continue
        for event in events.Tensors(tag):
            if tag == "sample":
                text = event.tensor_proto.string_val[0].decode()
                lines = [line.removeprefix("    ") for line in text.split("\n")]
                found.samples.append((event.step, "\n".join(lines)))
            else:
                assert events.SummaryMetadata(tag).plugin_data.plugin_name == "scalars"
                found.add(tag, event.step, event.tensor_proto.float_val[0], event.wall_time)
    return found


def read_trackio(folder: Path) -> Found:
    found = Found()
    connection = sqlite3.connect(folder / "gptcli.db")
    for step, time, metrics in connection.execute(
        "select step, timestamp, metrics from metrics order by id"
    ):
        unix = datetime.fromisoformat(time).timestamp()
        for name, value in json.loads(metrics).items():
            if name == "sample":
                assert value["_type"] == "trackio.markdown"
                text = value["_value"].removeprefix("```text\n").removesuffix("\n```")
                found.samples.append((step, text))
            else:
                found.add(name, step, value, unix)
    ((config,),) = connection.execute("select config from configs").fetchall()
    found.config = json.loads(config)
    connection.close()
    return found


def records(path: Path) -> Iterator[bytes]:
    """Yield the records of a .wandb file.

    After its first 7 bytes, the file has the log format of LevelDB."""
    data = path.read_bytes()
    assert data[:4] == b":W&B"
    at, record = 7, b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:  # the remaining bytes of this block are too few for a header
            at += 32768 - at % 32768
            continue
        _, size, kind = struct.unpack("<IHB", data[at : at + 7])
        record += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # this part is the last one of the record
            yield record
            record = b""


def read_wandb(folder: Path) -> Found:
    from wandb.proto.wandb_internal_pb2 import Record

    (path,) = folder.glob("wandb/offline-run-*/*.wandb")
    found = Found()
    for content in records(path):
        record = Record.FromString(content)
        for item in record.run.config.update if record.WhichOneof("record_type") == "run" else ():
            found.config[item.key] = json.loads(item.value_json)
        if record.WhichOneof("record_type") != "history":
            continue
        values = {
            item.key or ".".join(item.nested_key): json.loads(item.value_json)
            for item in record.history.item
        }
        step, time = values.pop("_step"), values.pop("_timestamp")
        values.pop("_runtime", None)
        sample = {key: values.pop(key) for key in list(values) if key.startswith("sample.")}
        if sample:
            file = path.parent / "files" / sample["sample.path"]
            text = file.read_text("utf-8").removeprefix("<pre>").removesuffix("</pre>")
            found.samples.append((values.pop("sample_step"), html.unescape(text)))
        for name, value in values.items():
            found.add(name, step, value, time)
    found.config.pop("_wandb", None)
    return found


READ = {"tensorboard": read_tensorboard, "trackio": read_trackio, "wandb": read_wandb}
PLACE = {"tensorboard": "loggers/tensorboard", "trackio": "loggers/trackio", "wandb": "loggers"}


def expect_all(run: Path, name: str, folder: Path | None = None) -> Found:
    """Assert that a log holds exactly the data of metrics.jsonl and samples.txt; return the log.

    `name` is the name of the logger that wrote the log."""
    found = READ[name](folder or run / PLACE[name])
    items = Rows(run).read(ended=True)
    clock = run_clock(run, 0.0)
    expected: Points = {}
    for item in items:
        if isinstance(item, Row):
            for key, value in item.values.items():
                time = clock(item.values["seconds"])
                # TensorBoard stores numbers as float32, so they are rounded.
                kept = struct.unpack("f", struct.pack("f", value))[0]
                expected.setdefault(key, {})[item.step] = (
                    kept if name == "tensorboard" else value,
                    pytest.approx(time, abs=0.001),
                )
    assert expected["loss"]
    assert expected["val_loss"]
    assert found.points == expected
    samples = [(item.step, item.text) for item in items if isinstance(item, Sample)]
    assert sorted(found.samples) == sorted(samples)
    assert found.config["model.n_embd"] == 32
    assert found.config["train.optimizer"] == "muon"
    assert found.config["run.compile"] is False
    return found


def files_of(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("name", [needs(name) for name in PACKAGES])
def test_a_run_is_logged_resumed_and_logged_again(
    name: str, cli: Any, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    home = tmp_path / "home"
    home.mkdir()
    for variable in ("HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME"):
        monkeypatch.setenv(variable, str(home))
    # Send every request to a port on which no program listens. A logger that needs the network
    # would fail.
    for variable in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")
    run = tmp_path / "run"
    train = (
        "train", text_file, "--out", run, *SMALL, "run.dtype=float32", "train.log_every=2",
        "train.eval_every=5", "train.sample_every=3",
    )  # fmt: skip
    outcome = cli(*train, "train.max_steps=12", f"run.loggers={name}")
    assert outcome.code == 0, outcome.err
    assert "WARNING" not in outcome.err
    expect_all(run, name)
    # Delete the last checkpoint, as if the run had crashed after it logged step 12. The newest
    # remaining checkpoint is that of step 10.
    shutil.rmtree(run / "checkpoints" / "step-00000012")
    outcome = cli("train", "--resume", "--extend", "--out", run, "train.max_steps=16")
    assert outcome.code == 0, outcome.err
    assert "WARNING" not in outcome.err
    found = expect_all(run, name)
    assert max(found.points["loss"]) == 16
    for _ in range(2):
        outcome = cli("log", run, "--to", name)
        assert outcome.code == 0, outcome.err
        expect_all(run, name)
    assert cli("log", run, "--to", name, "--out", tmp_path / "log").code == 0
    expect_all(run, name, tmp_path / "log")
    # The logger wrote no file outside of the run folder, so the folder can be copied and moved.
    assert not [path for path in run.rglob("*") if path.is_symlink()]
    assert files_of(home) == set()
    assert files_of(tmp_path) == {"home", "run", "log"}
    moved = run.rename(tmp_path / "moved")
    expect_all(moved, name)


@pytest.mark.parametrize("name", [needs(name) for name in PACKAGES])
def test_an_old_run_is_logged_afterwards(name: str, cli: Any, tmp_path: Path) -> None:
    """`gptcli log` works with a run of an earlier version, and changes no file of the run."""
    old = Path(__file__).parent.parent / "old_runs" / "modern-char-muon" / "run"
    run = Path(shutil.copytree(old, tmp_path / "old"))
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    outcome = cli("log", run, "--to", name, "--out", tmp_path / "log")
    assert outcome.code == 0, outcome.err
    found = READ[name](tmp_path / "log")
    rows = [item for item in Rows(run).read(ended=True) if isinstance(item, Row)]
    assert list(found.points["loss"]) == [row.step for row in rows if "loss" in row.values]
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("name", [needs("tensorboard")])
def test_tensorboard_keeps_the_event_files_of_other_runs(
    name: str, trained: Path, cli: Any, tmp_path: Path
) -> None:
    (tmp_path / "events.out.tfevents.1.other").write_bytes(b"")
    outcome = cli("log", trained, "--to", name, "--out", tmp_path)
    assert outcome.code == 1
    assert "holds the event file of another run" in outcome.err
    assert files_of(tmp_path) == {"events.out.tfevents.1.other"}


@pytest.mark.parametrize("name", [needs("trackio")])
def test_trackio_holds_several_runs(name: str, trained: Path, cli: Any, tmp_path: Path) -> None:
    other = Path(shutil.copytree(trained, tmp_path / "other"))
    metrics = (other / "metrics.jsonl").read_text("utf-8")
    (other / "metrics.jsonl").write_text(metrics.replace('"seconds": 0.', '"seconds": 1.'))
    for run in (trained, other, trained):
        assert cli("log", run, "--to", name, "--out", tmp_path / "log").code == 0
    connection = sqlite3.connect(tmp_path / "log" / "gptcli.db")
    counts = connection.execute("select run_name, count(*) from metrics group by run_id").fetchall()
    connection.close()
    rows = len([item for item in Rows(trained).read(ended=True) if isinstance(item, Row)])
    samples = len(Rows(trained).read(ended=True)) - rows
    assert sorted(counts) == [("other", rows + samples), ("small", rows + samples)]


@pytest.mark.parametrize("name", [needs("wandb")])
def test_wandb_online_without_an_account_stops_nothing(
    name: str, cli: Any, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    run = tmp_path / "run"
    outcome = cli(
        "train", text_file, "--out", run, *SMALL, "train.max_steps=4", "run.loggers=wandb"
    )
    assert outcome.code == 0
    assert "WARNING: the logger wandb" in outcome.err
    assert "No API key configured" in outcome.err
    assert json.loads((run / "run.json").read_text())["stopped"] == "done"
