"""The C library comes to be, or it does not and says why; and nothing is left lying about."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from gptcli.config import Config
from gptcli.config_files import parse_config
from gptcli.errors import GptcliError
from gptcli.native import library
from gptcli.training.loop import train
from gptcli.training.passes import choose_engine
from gptcli.training.setup import FinishedRun, Prepared, prepare_new, prepare_resume

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="it is built on Linux alone")

CPU = torch.device("cpu")
SMALL = (
    "model.n_layer=1",
    "model.n_head=2",
    "model.n_embd=32",
    "model.block_size=16",
    "train.max_steps=2",
    "run.threads=1",
    "run.device=cpu",
    "run.dtype=bfloat16",
)


def forget() -> None:
    while library._Builder.running:  # by a test that ended before it asked for what was built
        library._Builder.running.popitem()[1].give_up()
    library.find.cache_clear()
    library._key.cache_clear()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache, and a processor that could; what was found before is forgotten."""
    monkeypatch.setenv("GPTCLI_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    if not (library._processor_features() or frozenset()) >= library._NEEDED:
        monkeypatch.setattr(library, "_processor_features", lambda: library._NEEDED)
    forget()
    yield tmp_path / "cache"
    forget()


def compiler(folder: Path, does: str) -> str:
    """A program to be the C compiler; each call of it is a line of folder/calls."""
    path = folder / "compiler"
    path.write_text(f'#!/bin/sh\necho "$@" >> {folder}/calls\n{does}\n', encoding="utf-8")
    path.chmod(0o755)
    return str(path)


def calls(folder: Path) -> int:
    path = folder / "calls"
    return len(path.read_text("utf-8").splitlines()) if path.exists() else 0


def quick(folder: Path, built: ctypes.CDLL) -> str:
    """A compiler that has compiled it before."""
    goal = 'while [ "$1" != -o ]; do shift; done'
    return compiler(folder, f'{goal}\nrm "$2"; cp {built._name} "$2"')


@pytest.fixture
def quick_compiler(
    native: ctypes.CDLL, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """The cache of a user with a quick compiler."""
    monkeypatch.setenv("CC", quick(tmp_path, native))
    return cache


def test_it_is_built_once_and_kept(quick_compiler: Path, tmp_path: Path) -> None:
    for _ in range(2):
        found = library.find()
        assert (found.library is not None, found.reason) == (True, "")
        forget()
    assert calls(tmp_path) == 1
    (path,) = (quick_compiler / "native").iterdir()
    assert path.stat().st_mode & 0o077 == 0
    assert path.parent.stat().st_mode & 0o077 == 0
    assert list((tmp_path / "tmp").iterdir()) == []


def test_it_is_built_while_other_things_are_done(quick_compiler: Path, tmp_path: Path) -> None:
    library.start_building()
    assert library.find().library is not None
    library.start_building()
    assert calls(tmp_path) == 1


def put(content: bytes) -> Path:
    """A file where the library is looked for."""
    path = library._goal(library.TRAINING, library._processor_features())
    path.parent.mkdir(mode=0o700, parents=True)
    path.write_bytes(content)
    path.chmod(0o700)
    return path


@pytest.mark.parametrize("of", ["file", "folder"])
def test_what_others_can_write_is_not_loaded(
    of: str, native: ctypes.CDLL, quick_compiler: Path, tmp_path: Path
) -> None:
    path = put(Path(native._name).read_bytes() + b"what somebody else has put there")
    (path if of == "file" else path.parent).chmod(0o777)
    found = library.find()
    assert found.library is not None
    assert calls(tmp_path) == 1
    if of == "file":
        assert not path.read_bytes().endswith(b"put there")
    else:  # nothing is kept in such a folder
        assert Path(found.library._name).parent != path.parent
        assert [entry.name for entry in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("content", [b"", b"\x7fELF and no more", b"no library at all"])
def test_a_damaged_file_is_built_again(
    content: bytes, quick_compiler: Path, tmp_path: Path
) -> None:
    path = put(content)
    assert library.find().library is not None
    assert calls(tmp_path) == 1
    assert path.read_bytes() != content


def test_a_cache_that_cannot_be_written_does_not_matter(
    quick_compiler: Path, tmp_path: Path
) -> None:
    quick_compiler.write_text("a file, where the folder would be", encoding="utf-8")
    library.start_building()
    assert library.find().library is not None
    assert list((tmp_path / "tmp").iterdir()) == []


def test_what_killed_builders_left_is_swept(quick_compiler: Path) -> None:
    folder = quick_compiler / "native"
    folder.mkdir(parents=True, mode=0o700)
    old, new = folder / ".building-old.so", folder / ".building-new.so"
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - 7200,) * 2)
    assert library.find().library is not None
    assert (old.exists(), new.exists()) == (False, True)


def test_a_compiler_without_tiles_leaves_them_to_pytorch(
    without_tiles: ctypes.CDLL, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CC", quick(tmp_path, without_tiles))
    found = library.find()
    assert found.library is None
    assert "tiles" in found.reason


def test_without_a_compiler(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CC", raising=False)
    library.start_building()
    expected = library.Found(None, "there is no C compiler (`gcc` or `cc`)", can_be_helped=True)
    assert library.find() == expected


def test_a_compiler_that_is_not_there(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CC", "/no/such/compiler")
    library.start_building()
    found = library.find()
    assert found.reason == "`/no/such/compiler` cannot be run (No such file or directory)"
    assert (found.library, found.can_be_helped) == (None, True)
    assert list((cache / "native").iterdir()) == []


@pytest.mark.parametrize(
    ("says", "reason"),
    [
        ("", "without a word"),
        ("odd", "odd"),
        ("In file included from gpt.c:3:\nx.h:1: error: no AVX\n1 error", "x.h:1: error: no AVX"),
    ],
)
@pytest.mark.parametrize("started", [False, True])
def test_a_compiler_that_fails(
    started: bool, says: str, reason: str, cache: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    (tmp_path / "says").write_text(says, encoding="utf-8")
    monkeypatch.setenv("CC", compiler(tmp_path, f"cat {tmp_path}/says >&2; exit 1"))
    if started:
        library.start_building()
    for _ in range(2):  # asked once, whoever wants to know
        assert library.find().reason == f"the C compiler failed: {reason}"
    assert library.find().can_be_helped
    assert calls(tmp_path) == 1
    assert list((cache / "native").iterdir()) == []


def test_a_compiler_that_never_ends(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts = f"sleep 1000 & echo $! > {tmp_path}/pid; wait"
    monkeypatch.setenv("CC", compiler(tmp_path, starts))
    monkeypatch.setattr(library, "_SECONDS_TO_BUILD", 0.5)
    assert library.find().reason == "the C compiler failed: it took too long"
    assert list((cache / "native").iterdir()) == []
    status = Path("/proc", (tmp_path / "pid").read_text("utf-8").strip(), "status")
    until = time.monotonic() + 10
    while status.exists() and "State:\tZ" not in status.read_text("utf-8"):
        assert time.monotonic() < until, "what it started goes on"
        time.sleep(0.01)


def test_another_processor(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", compiler(tmp_path, "exit 0"))
    known = library._NEEDED - {"avx512_bf16"}
    monkeypatch.setattr(library, "_processor_features", lambda: known)
    library.start_building()
    found = library.find()
    assert "the processor has no AVX512-BF16" in found.reason
    assert (found.library, found.can_be_helped) == (None, False)
    assert calls(tmp_path) == 0


def test_nothing_stays_of_a_build_that_nobody_waited_for(cache: Path, tmp_path: Path) -> None:
    code = (
        "import time; from gptcli.native import library; library.start_building(); "
        "assert library._Builder.running; time.sleep(0.3)"
    )
    if not (library._processor_features() or frozenset()) >= library._NEEDED:
        pytest.skip("nothing would be built on this machine")
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)
    assert list((cache / "native").iterdir()) == []
    assert list((tmp_path / "tmp").iterdir()) == []  # the compiler's own


# ---- who chooses ---------------------------------------------------------------------------------


def chosen(*overrides: str, compiled: bool = False, has_user_parts: bool = False) -> Any:
    config = parse_config("", [*SMALL, *overrides])
    dtype = getattr(torch, config.run.dtype)
    return choose_engine(config, CPU, dtype, compiled=compiled, has_user_parts=has_user_parts)


def test_the_engine_that_was_asked_for_is_taken(
    quick_compiler: Path, tmp_path: Path, text_file: Path
) -> None:
    overrides = [*SMALL, f"data.source={text_file}", "run.engine=torch"]
    prepared = prepare_new(parse_config("", overrides), tmp_path / "r")
    assert (prepared.setup.engine, prepared.setup.config.run.engine) == ("torch", "torch")
    assert calls(tmp_path) == 0
    assert chosen("run.engine=native") == chosen() == ("native", None)


@pytest.mark.parametrize(
    ("overrides", "how", "reason"),
    [
        (["run.dtype=float32"], {}, "it computes in bfloat16 on a CPU"),
        (["model.n_embd=48"], {}, "model.n_embd 48 is not a multiple of 32"),
        (["model.n_head=4"], {}, "n_embd / n_head is 8, not a multiple of 16 up to 512"),
        (["model.n_embd=1024", "model.n_head=1"], {}, "n_embd / n_head is 1024, not a multiple"),
        (["model.block_size=4097"], {}, "model.block_size 4097 is over 4096"),
        ([], {"compiled": True}, "`run.compile` is set"),
        ([], {"own_parts": True}, "it has no part of your own"),
    ],
)
def test_what_is_not_for_the_c_passes_says_so(
    overrides: list[str], how: dict[str, bool], reason: str, quick_compiler: Path
) -> None:
    with pytest.raises(GptcliError) as refused:
        chosen("run.engine=native", *overrides, **how)
    assert refused.value.message.startswith(f"`run.engine` native is not possible: {reason}")
    assert refused.value.exit_code == 2
    assert chosen(*overrides, **how) == ("torch", None)  # nothing that the user could help


def test_training_goes_on_without_a_compiler_and_says_so_once(
    cache: Path, tmp_path: Path, text_file: Path, cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CC", compiler(tmp_path, "echo broken >&2; exit 1"))
    outcome = cli("train", text_file, *SMALL, "--out", tmp_path / "r", "--json")
    assert outcome.code == 0, outcome.err
    note = "training with PyTorch alone, which is slower: the C compiler failed: broken"
    assert outcome.err.count(note) == 1
    assert "engine: torch" in (tmp_path / "r" / "config.yaml").read_text("utf-8")
    assert calls(tmp_path) == 1
    outcome = cli("train", text_file, *SMALL, "run.engine=native", "--out", tmp_path / "other")
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err == (
        "error: `run.engine` native is not possible: the C compiler failed: broken\n\n"
        "hint: `auto` does without\n"
    )
    assert not (tmp_path / "other").exists()


def test_the_face_says_that_the_c_library_trains(
    quick_compiler: Path, tmp_path: Path, text_file: Path, cli: Any
) -> None:
    outcome = cli("train", text_file, *SMALL, "--out", tmp_path / "r")
    assert outcome.code == 0, outcome.err
    assert "PyTorch alone" not in outcome.err
    assert "engine: native" in (tmp_path / "r" / "config.yaml").read_text("utf-8")
    assert calls(tmp_path) == 1


@pytest.fixture
def stopped(quick_compiler: Path, tmp_path: Path, text_file: Path) -> tuple[Path, Config]:
    """A native run, interrupted after its first step, and its config as the user gave it."""
    config = parse_config("", [*SMALL, f"data.source={text_file}", "train.max_steps=4"])
    setup = prepare_new(config, tmp_path / "r").setup
    assert setup.engine == "native"
    list(train(setup, lambda: True))
    return tmp_path / "r", config


def with_run(config: Config, **changes: object) -> Config:
    return config.model_copy(update={"run": config.run.model_copy(update=changes)})


def test_a_native_run_goes_on_where_there_is_no_compiler(
    stopped: tuple[Path, Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, _ = stopped
    monkeypatch.setenv("CC", compiler(tmp_path, "exit 1"))
    monkeypatch.setenv("GPTCLI_CACHE", str(tmp_path / "another"))
    forget()
    resumed = prepare_resume(run, None)
    assert isinstance(resumed, Prepared)
    assert resumed.setup.engine == resumed.setup.config.run.engine == "torch"
    assert [note for note in resumed.notes if "compiler" in note or "engine" in note] == [
        "training with PyTorch alone, which is slower: the C compiler failed: without a word",
        "run.engine is now torch, because native cannot be used here: numbers will round "
        "differently from now on",
    ]
    list(train(resumed.setup))
    assert isinstance(prepare_resume(run, None), FinishedRun)


@pytest.mark.parametrize("engine", ["auto", "native"])  # as the user, or as config.yaml has it
def test_a_native_run_goes_on_in_another_dtype(engine: str, stopped: tuple[Path, Config]) -> None:
    run, config = stopped
    resumed = prepare_resume(run, with_run(config, dtype="float32", engine=engine))
    assert isinstance(resumed, Prepared)
    assert (resumed.setup.engine, resumed.setup.dtype) == ("torch", torch.float32)
    assert any("run.engine is now torch" in note for note in resumed.notes)
    list(train(resumed.setup, lambda: True))
    with pytest.raises(GptcliError, match=r"`run.engine` native is not possible"):
        prepare_resume(
            run, with_run(config, engine="native", dtype="float32")
        )  # asked for now, in float32
    again = prepare_resume(run, with_run(config, engine="native", dtype="bfloat16"))
    assert isinstance(again, Prepared)
    assert again.setup.engine == "native"


def test_a_native_run_stays_native(stopped: tuple[Path, Config]) -> None:
    run, config = stopped
    for wanted in (None, config, with_run(config, engine="native")):
        resumed = prepare_resume(run, wanted)
        assert isinstance(resumed, Prepared)
        assert resumed.setup.engine == resumed.setup.config.run.engine == "native"
        assert not any("engine" in note for note in resumed.notes)
