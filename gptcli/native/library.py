"""The C files of this folder as libraries: built once for the processor at hand, then kept.

Training needs Linux on x86-64 with AVX512-BF16 (Intel from Cooper Lake on, AMD from Zen 4 on);
sampling any Linux. Both need gcc or another `cc`.
"""

from __future__ import annotations

import atexit
import ctypes
import functools
import hashlib
import os
import platform
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from gptcli.files.caches import cache_folder
from gptcli.files.durable import fsync_file
from gptcli.interrupts import before_leaving

_HERE = Path(__file__).parent
_FLAGS = ("-O3", "-march=native", "-fopenmp", "-shared", "-fPIC", "-std=gnu11")
_NEEDED = frozenset({"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_bf16"})
_TILES = {"amx_tile", "amx_bf16"}
_SECONDS_TO_BUILD = 120.0
_SECONDS_TO_STOP = 2.0

_P, _I, _I64, _F = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64, ctypes.c_float


@dataclass(frozen=True, eq=False)
class Source:
    """A C file, what it offers, and what a processor must have for it to be built."""

    name: str
    functions: dict[str, tuple[Any, list[Any]]]
    needed: frozenset[str] = frozenset()


class Shape(ctypes.Structure):
    """`Shape` of model.h."""

    _fields_ = [
        *((name, ctypes.c_int32) for name in ("modern", "tied", "L", "H", "C", "F", "V", "T")),
        ("threads", ctypes.c_int32),
        ("dropout", ctypes.c_float),
        ("most_tokens", ctypes.c_int64),
    ]


class DecoderShape(ctypes.Structure):
    """`Shape` of decoder.h."""

    _fields_ = [
        (name, ctypes.c_int32)
        for name in ("modern", "kind", "L", "H", "C", "F", "V", "W", "streams", "threads")
    ]


class SamplingParamsStruct(ctypes.Structure):
    """`SamplingParams` of next_token.h."""

    _fields_ = [
        *((name, ctypes.c_double) for name in ("temperature", "top_p", "min_p", "penalty")),
        ("top_k", ctypes.c_int32),
    ]


_BEGINNING: dict[str, tuple[Any, list[Any]]] = {
    "request_amx": (_I, []),
    "compiled_with_amx": (_I, []),
}
TRAINING = Source(
    "gpt",
    {
        **_BEGINNING,
        "gpt_new": (_P, [ctypes.POINTER(Shape), _P]),
        "gpt_free": (None, [_P]),
        "gpt_bytes": (ctypes.c_size_t, [ctypes.POINTER(Shape)]),
        "gpt_pack": (None, [_P, _P]),
        "gpt_loss": (ctypes.c_double, [_P, _P, _P, _P, _P, _I, _I, ctypes.c_uint64, _F, _I]),
        "gpt_adamw": (None, [_I, _I, _P, _P, _P, _P, _P, _P, _F, _F, _F, _F, _I64]),
        "gpt_muon": (_I, [_I, _I, _P, _P, _P, _P, _P, _F, _F, _F, _I]),
    },
    _NEEDED,
)
SAMPLING = Source(
    "decode",
    {
        **_BEGINNING,
        "dec_new": (_P, [ctypes.POINTER(DecoderShape), _P]),
        "dec_free": (None, [_P]),
        "dec_bytes": (ctypes.c_size_t, [ctypes.POINTER(DecoderShape)]),
        "dec_rounds_rows": (_I, []),
        "dec_max_chunk": (_I, [_P]),
        "dec_max_rows": (_I, [_P]),
        "dec_feed": (None, [_P, _I, _P, _P, _P, _P, _I, _I]),
        "dec_score": (None, [_P, _I, _I, _P, _P, _I]),
        "dec_max_scored": (_I, [_P]),
        "dec_copy": (None, [_P, _I, _I, _I]),
        "dec_logits": (ctypes.POINTER(_F), [_P, _I]),
        "dec_run": (
            None,
            [_P, _I, _P, _P, _I, _P, ctypes.POINTER(SamplingParamsStruct), _P, _P, _I, _I],
        ),
    },
)


@dataclass(frozen=True)
class Found:
    """The library, or why there is none."""

    library: ctypes.CDLL | None
    reason: str
    can_be_helped: bool = False
    """Whether the user could do something about the reason."""


@functools.cache
def find(source: Source = TRAINING) -> Found:
    """The library, built if it was not yet, or the reason why it cannot be had. Never raises."""
    features = _processor_features()
    if features is None:
        return Found(None, "this is not Linux")
    if not features >= source.needed:
        return Found(None, "the processor has no AVX512-BF16 (or this is not Linux on x86-64)")
    try:
        library = _kept(source, features) or _build(source, features)
    except _NotBuilt as error:
        return Found(None, str(error), can_be_helped=True)
    except (OSError, AttributeError) as error:
        return Found(None, f"the built library cannot be loaded: {error}")
    # Where PyTorch can use the tiles and we cannot, it trains more quickly; sampling does without.
    lacking = source is TRAINING and features >= _TILES and not library.compiled_with_amx()
    if lacking or not library.request_amx():
        return Found(None, "the compiler or the system does not let us use the processor's tiles")
    return Found(library, "")


def start_building(source: Source = TRAINING) -> None:
    """Begin to build in the background, if that is to be done: `find` waits for it."""
    features = _processor_features()
    if features is not None and features >= source.needed and _built(source, features) is None:
        with suppress(_NotBuilt, OSError):  # `find` meets the same error, and says it
            _Builder.running[source] = _Builder(source, features)


class _NotBuilt(Exception):
    pass


def _load(source: Source, path: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(path))
    for name, (result, arguments) in source.functions.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


def _processor_features() -> frozenset[str] | None:
    """What the processor says it knows; None where there is no asking."""
    if sys.platform != "linux":
        return None
    try:
        for line in Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() in ("flags", "Features"):
                return frozenset((platform.machine(), *value.split()))
    except OSError:
        pass
    return frozenset()


def _sources() -> list[Path]:
    return sorted(p for p in _HERE.iterdir() if p.suffix in (".c", ".h"))


@functools.cache
def _key(features: frozenset[str]) -> str:
    """What the built file depends on."""
    digest = hashlib.sha256()
    for source in _sources():
        digest.update(source.name.encode() + b"\0" + source.read_bytes() + b"\0")
    digest.update(" ".join((*_FLAGS, *sorted(features))).encode())
    return digest.hexdigest()[:32]


def _goal(source: Source, features: frozenset[str]) -> Path:
    return cache_folder() / "native" / f"{source.name}-{_key(features)}.so"


def _built(source: Source, features: frozenset[str]) -> Path | None:
    """The built file, if it is there and nobody but this user can have written it."""
    path = _goal(source, features)
    try:
        return path if _ours(path) and _ours(path.parent) else None
    except OSError:
        return None


def _ours(path: Path) -> bool:
    found = path.stat()
    return found.st_uid in (os.getuid(), 0) and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _kept(source: Source, features: frozenset[str]) -> ctypes.CDLL | None:
    path = _built(source, features)
    try:
        return None if path is None else _load(source, path)
    except (OSError, AttributeError):  # damaged; it will be replaced
        return None


def _build(source: Source, features: frozenset[str]) -> ctypes.CDLL:
    builder = _Builder.running.pop(source, None) or _Builder(source, features)
    try:
        return _load(source, builder.finish())
    finally:
        builder.clear_away()


class _Builder:
    """A compiler at work on a temporary file, which takes its place when it is whole."""

    running: ClassVar[dict[Source, _Builder]] = {}

    def __init__(self, source: Source, features: frozenset[str]) -> None:
        compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("cc")
        if not compiler:
            raise _NotBuilt("there is no C compiler (`gcc` or `cc`)")
        self.goal = _goal(source, features)
        self.private: Path | None = None
        try:
            self.goal.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not _ours(self.goal.parent):
                raise OSError
            handle, name = tempfile.mkstemp(prefix=".building-", suffix=".so", dir=self.goal.parent)
            _sweep(self.goal.parent)
        except OSError:  # built anew in each process then
            self.private = Path(tempfile.mkdtemp(prefix="gptcli-native-"))
            self.goal = self.private / f"{source.name}.so"
            handle, name = tempfile.mkstemp(suffix=".so", dir=self.private)
        os.close(handle)
        self.temporary = Path(name)
        words = [*compiler.split(), *_FLAGS, "-o", name, str(_HERE / f"{source.name}.c"), "-lm"]
        try:
            self.process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                start_new_session=True,  # so that what it starts can be stopped with it
            )
        except OSError as error:
            self.clear_away()
            raise _NotBuilt(f"`{compiler}` cannot be run ({error.strerror})") from None
        atexit.register(self.give_up)

    def give_up(self) -> None:
        """Leave nothing behind where nobody waited for the end."""
        if self.process.poll() is None:
            self.stop()
        elif self.process.returncode == 0 and self.private is None and self.temporary.exists():
            self.temporary.chmod(0o700)  # it was built; the next process will need it
            self.temporary.replace(self.goal)
        self.clear_away()

    def stop(self) -> None:
        """End the compiler, which clears its own temporary files away when it is asked to."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, number)
            try:
                self.process.communicate(timeout=_SECONDS_TO_STOP)
                return
            except subprocess.TimeoutExpired:
                pass

    def clear_away(self) -> None:
        """Remove what is not to stay: a library that is loaded does not need its file."""
        self.temporary.unlink(missing_ok=True)
        if self.private is not None:
            shutil.rmtree(self.private, ignore_errors=True)

    def finish(self) -> Path:
        try:
            _, errors = self.process.communicate(timeout=_SECONDS_TO_BUILD)
        except subprocess.TimeoutExpired:
            self.stop()
            raise _NotBuilt("the C compiler failed: it took too long") from None
        if self.process.returncode != 0:
            raise _NotBuilt(f"the C compiler failed: {_complaint(errors)}")
        self.temporary.chmod(0o700)
        fsync_file(self.temporary)
        self.temporary.replace(self.goal)
        return self.goal


def _give_up_all() -> None:
    for builder in list(_Builder.running.values()):
        builder.give_up()


before_leaving.append(_give_up_all)


def _complaint(errors: bytes) -> str:
    """What a compiler says first, without the files that lead there."""
    lines = errors.decode("utf-8", "replace").strip().splitlines() or ["without a word"]
    return next((line for line in lines if "error" in line), lines[0]).strip()


def _sweep(folder: Path) -> None:
    """Remove what builders left that were killed."""
    for path in folder.glob(".building-*"):
        with suppress(OSError):  # another process may be at it too
            if path.stat().st_mtime < time.time() - 10 * _SECONDS_TO_BUILD:
                path.unlink()
