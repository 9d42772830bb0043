"""The C files of this folder as a library: built once for the processor at hand, then kept.

Linux on x86-64 with AVX512-BF16 (Intel from Cooper Lake on, AMD from Zen 4 on), with gcc or
another `cc`.
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
from typing import Any

from gptcli.caches import cache_folder
from gptcli.durable import fsync_file

_HERE = Path(__file__).parent
_FLAGS = ("-O3", "-march=native", "-fopenmp", "-shared", "-fPIC", "-std=gnu11")
_NEEDED = {"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_bf16"}
_TILES = {"amx_tile", "amx_bf16"}
_SECONDS_TO_BUILD = 120.0
_SECONDS_TO_STOP = 2.0

_P, _I, _I64, _F = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64, ctypes.c_float


class Shape(ctypes.Structure):
    """`Shape` of model.h."""

    _fields_ = [
        *((name, ctypes.c_int32) for name in ("modern", "tied", "L", "H", "C", "F", "V", "T")),
        ("threads", ctypes.c_int32),
        ("dropout", ctypes.c_float),
        ("most_tokens", ctypes.c_int64),
    ]


_FUNCTIONS: dict[str, tuple[Any, list[Any]]] = {
    "gpt_begin": (_I, []),
    "gpt_has_tiles": (_I, []),
    "gpt_new": (_P, [ctypes.POINTER(Shape), _P]),
    "gpt_free": (None, [_P]),
    "gpt_bytes": (ctypes.c_size_t, [ctypes.POINTER(Shape)]),
    "gpt_pack": (None, [_P, _P]),
    "gpt_loss": (ctypes.c_double, [_P, _P, _P, _P, _P, _I, _I, ctypes.c_uint64, _F, _I]),
    "gpt_adamw": (None, [_I, _I, _P, _P, _P, _P, _P, _P, _F, _F, _F, _F, _I64]),
    "gpt_muon": (_I, [_I, _I, _P, _P, _P, _P, _P, _F, _F, _F, _I]),
}


@dataclass(frozen=True)
class Found:
    """The library, or why there is none."""

    library: ctypes.CDLL | None
    reason: str
    can_be_helped: bool = False
    """Whether the user could do something about the reason."""


@functools.lru_cache(maxsize=1)
def find() -> Found:
    """The library, built if it was not yet, or the reason why it cannot be had. Never raises."""
    features = _processor_features()
    if not features >= _NEEDED:
        return Found(None, "the processor has no AVX512-BF16 (or this is not Linux on x86-64)")
    try:
        library = _kept(features) or _build(features)
    except _NotBuilt as error:
        return Found(None, str(error), can_be_helped=True)
    except (OSError, AttributeError) as error:
        return Found(None, f"the built library cannot be loaded: {error}")
    tiles = bool(library.gpt_has_tiles())
    if tiles != (features >= _TILES) or not library.gpt_begin():
        # Where PyTorch can use the tiles and we cannot, it is the quicker way.
        return Found(None, "the compiler or the system does not let us use the processor's tiles")
    return Found(library, "")


def start_building() -> None:
    """Begin to build in the background, if that is to be done: `find` waits for it."""
    features = _processor_features()
    if features >= _NEEDED and _built(features) is None:
        try:
            _Builder.running = _Builder(features)
        except (_NotBuilt, OSError):
            _Builder.running = None  # `find` meets the same error, and says it


class _NotBuilt(Exception):
    pass


def _load(path: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(path))
    for name, (result, arguments) in _FUNCTIONS.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


def _processor_features() -> set[str]:
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return set()
    try:
        for line in Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines():
            if line.startswith("flags"):
                return set(line.partition(":")[2].split())
    except OSError:
        pass
    return set()


def _sources() -> list[Path]:
    return sorted(p for p in _HERE.iterdir() if p.suffix in (".c", ".h"))


@functools.lru_cache(maxsize=1)
def _key(features: frozenset[str]) -> str:
    """What the built file depends on."""
    digest = hashlib.sha256()
    for source in _sources():
        digest.update(source.name.encode() + b"\0" + source.read_bytes() + b"\0")
    digest.update(" ".join((*_FLAGS, *sorted(features))).encode())
    return digest.hexdigest()[:32]


def _goal(features: set[str]) -> Path:
    return cache_folder() / "native" / f"gpt-{_key(frozenset(features))}.so"


def _built(features: set[str]) -> Path | None:
    """The built file, if it is there and nobody but this user can have written it."""
    path = _goal(features)
    try:
        return path if _ours(path) and _ours(path.parent) else None
    except OSError:
        return None


def _ours(path: Path) -> bool:
    found = path.stat()
    return found.st_uid in (os.getuid(), 0) and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _kept(features: set[str]) -> ctypes.CDLL | None:
    path = _built(features)
    try:
        return None if path is None else _load(path)
    except (OSError, AttributeError):  # damaged; it will be replaced
        return None


def _build(features: set[str]) -> ctypes.CDLL:
    builder = _Builder.running or _Builder(features)
    _Builder.running = None
    try:
        return _load(builder.finish())
    finally:
        builder.clear_away()


class _Builder:
    """A compiler at work on a temporary file, which takes its place when it is whole."""

    running: _Builder | None = None

    def __init__(self, features: set[str]) -> None:
        compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("cc")
        if not compiler:
            raise _NotBuilt("there is no C compiler (`gcc` or `cc`)")
        self.goal = _goal(features)
        self.private: Path | None = None
        try:
            self.goal.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not _ours(self.goal.parent):
                raise OSError
            handle, name = tempfile.mkstemp(prefix=".gpt-", suffix=".so", dir=self.goal.parent)
            _sweep(self.goal.parent)
        except OSError:  # built anew in each process then
            self.private = Path(tempfile.mkdtemp(prefix="gptcli-native-"))
            self.goal = self.private / "gpt.so"
            handle, name = tempfile.mkstemp(suffix=".so", dir=self.private)
        os.close(handle)
        self.temporary = Path(name)
        words = [*compiler.split(), *_FLAGS, "-o", name, str(_HERE / "gpt.c"), "-lm"]
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


def _complaint(errors: bytes) -> str:
    """What a compiler says first, without the files that lead there."""
    lines = errors.decode("utf-8", "replace").strip().splitlines() or ["without a word"]
    return next((line for line in lines if "error" in line), lines[0]).strip()


def _sweep(folder: Path) -> None:
    """Remove what builders left that were killed."""
    for path in folder.glob(".gpt-*"):
        with suppress(OSError):  # another process may be at it too
            if path.stat().st_mtime < time.time() - 10 * _SECONDS_TO_BUILD:
                path.unlink()
