"""The C libraries: compiling, caching and loading them, and the choice of the training engine."""

from __future__ import annotations

import ctypes
import dataclasses
import math
import os
import platform
import re
import shutil
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
from gptcli.devices import choose_dtype
from gptcli.errors import GptcliError
from gptcli.model.parameters import IN_BLOCK, OUTSIDE_BLOCKS
from gptcli.native import library
from gptcli.native.library import SAMPLING, TRAINING, TRAINING_FLOAT32
from gptcli.processor import features_and_flags, usable_processor
from gptcli.training import optimizers
from gptcli.training.loop import train
from gptcli.training.passes import choose_engine
from gptcli.training.setup import FinishedRun, Prepared, prepare_new, prepare_resume
from tests.conftest import Once
from tests.native.conftest import emulated

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the C libraries need Linux")

CPU = torch.device("cpu")
SMALL = (
    "model.n_layer=1",
    "model.n_head=2",
    "model.n_embd=32",
    "model.block_size=16",
    "train.max_steps=2",
    "run.threads=1",
    "run.device=cpu",
    "run.dtype=float32",
)


HERE = Path(library.__file__).parent


def forget_libraries() -> None:
    """Bring gptcli.native.library back to the state of a new process.

    A new process has loaded no library, and runs no compiler."""
    while library._Builder.running:  # a test started the compiler and did not wait for its end
        library._Builder.running.popitem()[1].abandon()
    library.find.cache_clear()
    library._cache_key.cache_clear()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache folder for gptcli, and the state of a process that has loaded no C library."""
    monkeypatch.setenv("GPTCLI_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    monkeypatch.delenv("GPTCLI_CPU", raising=False)
    forget_libraries()
    yield tmp_path / "cache"
    forget_libraries()


def fake_compiler(folder: Path, script: str) -> str:
    """The path of a fake compiler, for the environment variable CC.

    At each call, the compiler adds a line to folder/calls and runs the shell script `script`."""
    path = folder / "compiler"
    path.write_text(f'#!/bin/sh\necho "$@" >> {folder}/calls\n{script}\n', encoding="utf-8")
    path.chmod(0o755)
    return str(path)


def calls(folder: Path) -> int:
    """How often the fake compiler was called."""
    path = folder / "calls"
    return len(path.read_text("utf-8").splitlines()) if path.exists() else 0


def copying_compiler(folder: Path, built: ctypes.CDLL) -> str:
    """A fake compiler that compiles nothing: its output is a copy of the library `built`."""
    output = 'while [ "$1" != -o ]; do shift; done'
    return fake_compiler(folder, f'{output}\nrm "$2"; cp {built._name} "$2"')


@pytest.fixture(scope="session")
def sampling_library() -> ctypes.CDLL:
    """The C library SAMPLING. A test that needs it is skipped if this machine cannot build it."""
    library.find.cache_clear()
    found = library.find(SAMPLING)
    if found.library is None:
        pytest.skip(f"no C library for sampling on this machine: {found.reason}")
    return found.library


@pytest.fixture
def sampling_compiler(
    sampling_library: ctypes.CDLL, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """An empty cache folder for gptcli.

    CC is a fake compiler that only copies the SAMPLING library."""
    monkeypatch.setenv("CC", copying_compiler(tmp_path, sampling_library))
    return cache


@pytest.fixture
def training_compiler(
    native_float32: ctypes.CDLL, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """An empty cache folder for gptcli.

    CC is a fake compiler that only copies the TRAINING_FLOAT32 library."""
    monkeypatch.setenv("CC", copying_compiler(tmp_path, native_float32))
    return cache


# ---- the cache -----------------------------------------------------------------------------------


def test_it_is_built_once_and_kept(sampling_compiler: Path, tmp_path: Path) -> None:
    for _ in range(2):
        found = library.find(SAMPLING)
        assert (found.library is not None, found.reason) == (True, "")
        forget_libraries()
    assert calls(tmp_path) == 1
    (path,) = (sampling_compiler / "native").iterdir()
    assert path.stat().st_mode & 0o077 == 0
    assert path.parent.stat().st_mode & 0o077 == 0
    assert list((tmp_path / "tmp").iterdir()) == []


def test_it_can_be_built_in_the_background(sampling_compiler: Path, tmp_path: Path) -> None:
    library.start_building(SAMPLING)
    assert library.find(SAMPLING).library is not None
    library.start_building(SAMPLING)
    assert calls(tmp_path) == 1


def put_into_cache(content: bytes) -> Path:
    """Write a file with this content where `library.find(SAMPLING)` looks for the compiled library.
    Return the path."""
    processor = usable_processor()
    assert processor is not None
    path = library._cached_path(SAMPLING, processor)
    path.parent.mkdir(mode=0o700, parents=True)
    path.write_bytes(content)
    path.chmod(0o700)
    return path


@pytest.mark.parametrize("of", ["file", "folder"])
def test_what_others_can_write_is_not_loaded(
    of: str, sampling_library: ctypes.CDLL, sampling_compiler: Path, tmp_path: Path
) -> None:
    path = put_into_cache(Path(sampling_library._name).read_bytes() + b"of another user")
    (path if of == "file" else path.parent).chmod(0o777)
    found = library.find(SAMPLING)
    assert found.library is not None
    assert calls(tmp_path) == 1
    if of == "file":
        assert not path.read_bytes().endswith(b"of another user")
    else:  # other users can change this folder, so find stores the new library elsewhere
        assert Path(found.library._name).parent != path.parent
        assert [entry.name for entry in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("content", [b"", b"\x7fELF and nothing else", b"no library at all"])
def test_a_damaged_file_is_built_again(
    content: bytes, sampling_compiler: Path, tmp_path: Path
) -> None:
    path = put_into_cache(content)
    assert library.find(SAMPLING).library is not None
    assert calls(tmp_path) == 1
    assert path.read_bytes() != content


def test_a_cache_that_cannot_be_written_does_not_matter(
    sampling_compiler: Path, tmp_path: Path
) -> None:
    sampling_compiler.write_text("a file instead of a folder", encoding="utf-8")
    library.start_building(SAMPLING)
    assert library.find(SAMPLING).library is not None
    assert list((tmp_path / "tmp").iterdir()) == []


def test_files_of_killed_builders_are_removed(sampling_compiler: Path) -> None:
    folder = sampling_compiler / "native"
    folder.mkdir(parents=True, mode=0o700)
    old, new = folder / ".building-old.so", folder / ".building-new.so"
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - 7200,) * 2)
    assert library.find(SAMPLING).library is not None
    assert (old.exists(), new.exists()) == (False, True)


def test_pytorch_trains_if_the_compiler_does_not_know_amx(
    once: Once, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = emulated(once, amx=False)
    monkeypatch.setattr(library, "usable_processor", lambda: features_and_flags("amx"))
    monkeypatch.setenv("CC", copying_compiler(tmp_path, built))
    found = library.find(TRAINING)
    assert found.library is None
    assert "tiles" in found.reason


def test_without_a_compiler(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    library.start_building(TRAINING_FLOAT32)
    reason = "there is no C compiler (`gcc` or `cc`); `pip install ziglang` installs one"
    assert library.find(TRAINING_FLOAT32) == library.Found(None, reason, user_can_fix=True)


def test_a_compiler_that_does_not_exist(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CC", "/no/such/compiler")
    library.start_building(TRAINING_FLOAT32)
    found = library.find(TRAINING_FLOAT32)
    assert found.reason == "`/no/such/compiler` cannot be run (No such file or directory)"
    assert (found.library, found.user_can_fix) == (None, True)
    assert list((cache / "native").iterdir()) == []


@pytest.mark.parametrize(
    ("says", "reason"),
    [
        ("", "without a message"),
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
    monkeypatch.setenv("CC", fake_compiler(tmp_path, f"cat {tmp_path}/says >&2; exit 1"))
    if started:
        library.start_building(TRAINING_FLOAT32)
    for _ in range(2):  # the second call does not start the compiler again
        assert library.find(TRAINING_FLOAT32).reason == f"the C compiler failed: {reason}"
    assert library.find(TRAINING_FLOAT32).user_can_fix
    assert calls(tmp_path) == 1
    assert list((cache / "native").iterdir()) == []


def test_a_compiler_that_never_ends(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts = f"sleep 1000 & echo $! > {tmp_path}/pid; wait"
    monkeypatch.setenv("CC", fake_compiler(tmp_path, starts))
    monkeypatch.setattr(library, "_SECONDS_TO_BUILD", 0.5)
    assert library.find(TRAINING_FLOAT32).reason == "the C compiler failed: it took too long"
    assert list((cache / "native").iterdir()) == []
    status = Path("/proc", (tmp_path / "pid").read_text("utf-8").strip(), "status")
    until = time.monotonic() + 300
    while status.exists() and "State:\tZ" not in status.read_text("utf-8"):
        assert time.monotonic() < until, "the compiler's child still runs"
        time.sleep(0.01)


def test_another_processor(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", fake_compiler(tmp_path, "exit 0"))
    monkeypatch.setattr(library, "usable_processor", lambda: features_and_flags("avx512"))
    library.start_building(TRAINING)
    found = library.find(TRAINING)
    assert "the processor has no AVX512-BF16" in found.reason
    assert (found.library, found.user_can_fix) == (None, False)
    assert calls(tmp_path) == 0


@pytest.mark.parametrize(
    ("kind", "dtype", "expected"),
    [
        ("avx2", "auto", "gpt-float32"),
        ("amx", "auto", "gpt-bfloat16"),
        ("amx", "float32", "gpt-float32"),
        ("avx2", "bfloat16", None),  # here PyTorch trains, so gptcli needs no library
        ("avx2", "float16", None),  # only a GPU trains in this dtype
    ],
)
def test_the_library_of_the_dtype_is_built_in_the_background(
    kind: str, dtype: str, expected: str | None, cache: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("CC", fake_compiler(tmp_path, "exit 1"))
    monkeypatch.setattr(library, "usable_processor", lambda: features_and_flags(kind))
    library.start_building_training(dtype)
    assert [source.name for source in library._Builder.running] == [expected] * bool(expected)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("avx", "GPTCLI_CPU is `avx`, which is no kind of processor"),
        ("neon" if platform.machine() == "x86_64" else "sse2", "but this processor does not have"),
    ],
)
def test_a_kind_of_processor_that_is_not_here_is_refused(
    kind: str, message: str, cache: Path, cli: Any, text_file: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("GPTCLI_CPU", kind)
    outcome = cli("train", text_file, *SMALL, "--out", tmp_path / "r")
    assert outcome.code == 2
    assert message in outcome.err
    assert "hint: " in outcome.err


def test_a_kind_of_processor_restricts_the_libraries(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CC", fake_compiler(tmp_path, "exit 1"))
    if platform.machine() != "x86_64":
        pytest.skip("needs x86-64")
    monkeypatch.setenv("GPTCLI_CPU", "sse2")
    assert library.find(TRAINING_FLOAT32).library is None
    words = (tmp_path / "calls").read_text("utf-8")
    assert "-march=x86-64 " in words
    assert "native" not in words.split(" -o ")[0]
    assert choose_dtype("auto", CPU) == torch.float32


def test_nothing_stays_of_a_build_that_nobody_waited_for(cache: Path, tmp_path: Path) -> None:
    if shutil.which("gcc") is None:
        pytest.skip("needs gcc, which removes its own temporary files when it is stopped")
    code = (
        "import time; from gptcli.native import library; "
        "library.start_building(library.SAMPLING); "
        "assert library._Builder.running; time.sleep(0.3)"
    )
    environment = {**os.environ, "CC": "gcc"}
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, env=environment)
    assert list((cache / "native").iterdir()) == []
    assert list((tmp_path / "tmp").iterdir()) == []  # gcc has not left any temporary files


# ---- the library matches the Python code ---------------------------------------------------------


class WrongShape(ctypes.Structure):
    """The struct DecoderShape with an additional field, so that it does not match the C library."""

    _fields_ = [*library.DecoderShape._fields_, ("extra", ctypes.c_int32)]


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        ("shape_bytes", ctypes.sizeof(WrongShape)),
        ("sampling_params_bytes", 4),
        ("global_parameters", 6),
        ("layer_parameters", 20),
    ],
)
def test_a_library_with_other_structs_is_refused(
    function: str, expected: int, sampling_compiler: Path, tmp_path: Path
) -> None:
    wrong = dataclasses.replace(SAMPLING, expected={**SAMPLING.expected, function: expected})
    right = SAMPLING.expected[function]
    reason = f"the C library does not match the Python code: {function} is {right}, not {expected}"
    for _ in range(2):
        assert library.find(wrong) == library.Found(None, reason, user_can_fix=True)
        forget_libraries()
    # `find` does not start the compiler again, because the compiler would make the same library.
    assert calls(tmp_path) == 1


def header_constants() -> dict[str, float]:
    """The constants that constants.h defines: name -> number."""
    text = (HERE / "constants.h").read_text("utf-8")
    found = re.findall(r"^#define (\w+) \(?(-?[\d.]+(?:e-?\d+)?)f?\)?(?: .*)?$", text, re.MULTILINE)
    return {name: float(value) for name, value in found}


def enum(text: str, first: str) -> list[str]:
    """All names of one enum in the C code `text`. The first name of this enum is `first`."""
    found = re.search(rf"enum \{{\s*({first}\b[^}}]*)\}}", text)
    assert found is not None
    return [name.strip() for name in found[1].split(",") if name.strip()]


def test_the_c_code_has_the_models_constants() -> None:
    constants = header_constants()
    assert constants["GELU_SCALE"] == pytest.approx(2 * math.sqrt(2 / math.pi), rel=1e-9)


def test_the_c_code_has_muons_constants() -> None:
    constants = header_constants()
    muon = [constants[f"MUON_{name}"] for name in "ABC"]
    assert muon == [optimizers._A, optimizers._B, optimizers._C]
    # This matrix X is so small that MUON_EPS changes the result. With 0 iterations, the result is
    # X / (norm + eps).
    small = torch.full((1, 1, 1), 1e-7, dtype=torch.float64)
    scaled = optimizers.orthogonalise(small, 0, torch.float64)
    assert scaled.item() == pytest.approx(1e-7 / (1e-7 + constants["MUON_EPS"]))


def test_the_c_code_has_the_parameters_of_the_table() -> None:
    text = (HERE / "parameters.h").read_text("utf-8")
    outside, inside = enum(text, "WTE"), enum(text, "LN1")
    assert outside == [*dict.fromkeys(row.place for row in OUTSIDE_BLOCKS), "GLOBALS"]
    assert inside == [*dict.fromkeys(row.place for row in IN_BLOCK), "PER_LAYER"]
    for source in (TRAINING, TRAINING_FLOAT32, SAMPLING):
        assert source.expected["global_parameters"] == len(outside) - 1
        assert source.expected["layer_parameters"] == len(inside) - 1


# ---- the training engine -------------------------------------------------------------------------


def engine_for(*overrides: str, compiled: bool = False, has_user_parts: bool = False) -> Any:
    config = parse_config("", [*SMALL, *overrides])
    dtype = getattr(torch, config.run.dtype)
    return choose_engine(config, CPU, dtype, compiled=compiled, has_user_parts=has_user_parts)


def test_the_requested_engine_is_used(
    training_compiler: Path, tmp_path: Path, text_file: Path
) -> None:
    overrides = [*SMALL, f"data.source={text_file}", "run.engine=torch"]
    prepared = prepare_new(parse_config("", overrides), tmp_path / "r")
    assert (prepared.setup.engine, prepared.setup.config.run.engine) == ("torch", "torch")
    assert calls(tmp_path) == 0
    assert engine_for("run.engine=native") == engine_for() == ("native", None)


@pytest.mark.parametrize(
    ("overrides", "options", "reason"),
    [
        (["run.dtype=float16"], {}, "the C library trains on a CPU only, in bfloat16 or float32"),
        (["model.n_embd=48"], {}, "model.n_embd 48 is not a multiple of 32"),
        (["model.n_head=4"], {}, "a head's width is 8, not a multiple of 16 up to 512"),
        (["model.n_embd=1024", "model.n_head=1"], {}, "a head's width is 1024, not a multiple"),
        (["model.n_kv_head=1"], {}, "n_kv_head 1 times a head's width 16 is not a multiple"),
        (["model.hidden_width=40"], {}, "model.hidden_width 40 is not a multiple of 32"),
        (["model.block_size=4097"], {}, "model.block_size 4097 is over 4096"),
        ([], {"compiled": True}, "`run.compile` is set"),
        ([], {"has_user_parts": True}, "the C library cannot run your own parts (--attention ...)"),
    ],
)
def test_an_unsupported_config_says_why(
    overrides: list[str], options: dict[str, bool], reason: str, training_compiler: Path
) -> None:
    with pytest.raises(GptcliError) as refused:
        engine_for("run.engine=native", *overrides, **options)
    assert refused.value.message.startswith(f"`run.engine: native` cannot be used: {reason}")
    assert refused.value.exit_code == 2
    without_a_note = ("torch", None)
    assert engine_for(*overrides, **options) == without_a_note


def test_pytorch_trains_without_a_compiler_and_one_note_says_so(
    cache: Path, tmp_path: Path, text_file: Path, cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CC", fake_compiler(tmp_path, "echo broken >&2; exit 1"))
    outcome = cli("train", text_file, *SMALL, "--out", tmp_path / "r", "--json")
    assert outcome.code == 0, outcome.err
    note = "training with PyTorch only, which is slower: the C compiler failed: broken"
    assert outcome.err.count(note) == 1
    assert "engine: torch" in (tmp_path / "r" / "config.yaml").read_text("utf-8")
    assert calls(tmp_path) == 1
    outcome = cli("train", text_file, *SMALL, "run.engine=native", "--out", tmp_path / "other")
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err == (
        "error: `run.engine: native` cannot be used: the C compiler failed: broken\n\n"
        "hint: add run.engine=auto to the command: gptcli then chooses for this machine\n"
    )
    assert not (tmp_path / "other").exists()


def test_the_c_library_trains_without_a_note(
    training_compiler: Path, tmp_path: Path, text_file: Path, cli: Any
) -> None:
    outcome = cli("train", text_file, *SMALL, "--out", tmp_path / "r")
    assert outcome.code == 0, outcome.err
    assert "PyTorch only" not in outcome.err
    assert "engine: native" in (tmp_path / "r" / "config.yaml").read_text("utf-8")
    assert calls(tmp_path) == 1


@pytest.fixture
def stopped(training_compiler: Path, tmp_path: Path, text_file: Path) -> tuple[Path, Config]:
    """A native run that was stopped after its first step, and its config as the user wrote it."""
    config = parse_config("", [*SMALL, f"data.source={text_file}", "train.max_steps=4"])
    setup = prepare_new(config, tmp_path / "r").setup
    assert setup.engine == "native"
    list(train(setup, lambda: True))
    return tmp_path / "r", config


def with_run(config: Config, **changes: object) -> Config:
    return config.model_copy(update={"run": config.run.model_copy(update=changes)})


def test_a_native_run_resumes_without_a_compiler(
    stopped: tuple[Path, Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, _ = stopped
    monkeypatch.setenv("CC", fake_compiler(tmp_path, "exit 1"))
    monkeypatch.setenv("GPTCLI_CACHE", str(tmp_path / "another"))
    forget_libraries()
    resumed = prepare_resume(run, None)
    assert isinstance(resumed, Prepared)
    assert resumed.setup.engine == resumed.setup.config.run.engine == "torch"
    assert [note for note in resumed.notes if "compiler" in note or "engine" in note] == [
        "training with PyTorch only, which is slower: the C compiler failed: without a message",
        "chosen again for this machine: run.engine is now torch (was native); numbers will round "
        "differently from now on",
    ]
    list(train(resumed.setup))
    assert isinstance(prepare_resume(run, None), FinishedRun)


# The engine that the user asks for at the resume. The user's first config said "auto", and the
# run's config.yaml says "native".
@pytest.mark.parametrize("engine", ["auto", "native"])
def test_a_native_run_resumes_in_another_dtype(
    engine: str, stopped: tuple[Path, Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, config = stopped
    monkeypatch.setattr(
        "gptcli.native.library.usable_processor", lambda: features_and_flags("avx2")
    )
    resumed = prepare_resume(run, with_run(config, dtype="bfloat16", engine=engine))
    assert isinstance(resumed, Prepared)
    assert (resumed.setup.engine, resumed.setup.dtype) == ("torch", torch.bfloat16)
    assert any("run.engine is now torch" in note for note in resumed.notes)
    list(train(resumed.setup, lambda: True))
    monkeypatch.undo()
    again = prepare_resume(run, with_run(config, engine="native", dtype="float32"))
    assert isinstance(again, Prepared)
    assert again.setup.engine == "native"


def test_a_native_run_stays_native(stopped: tuple[Path, Config]) -> None:
    run, config = stopped
    for wanted in (None, config, with_run(config, engine="native")):
        resumed = prepare_resume(run, wanted)
        assert isinstance(resumed, Prepared)
        assert resumed.setup.engine == resumed.setup.config.run.engine == "native"
        assert not any("engine" in note for note in resumed.notes)
