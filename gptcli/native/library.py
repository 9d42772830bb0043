"""Compiles the C libraries for this processor, caches them, and loads them through ctypes.

There are three libraries: TRAINING_FLOAT32, TRAINING (in bfloat16) and SAMPLING. All need Linux or
macOS and a C compiler: $CC, `gcc`, `cc` or the Python package ziglang (gptcli/native/compiler.py).
TRAINING_FLOAT32 needs x86-64 or 64-bit ARM. TRAINING needs x86-64 with AVX512-BF16 (Intel from
Cooper Lake on, AMD from Zen 4 on). $GPTCLI_CPU restricts the libraries to the features of a kind of
processor.
"""

from __future__ import annotations

import atexit
import ctypes
import functools
import hashlib
import os
import shutil
import signal
import stat
import subprocess
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from gptcli.files.caches import cache_folder
from gptcli.files.durable import fsync_file
from gptcli.interrupts import before_leaving
from gptcli.model.parameters import IN_BLOCK, OUTSIDE_BLOCKS
from gptcli.native.compiler import NONE, find_compiler
from gptcli.processor import Processor, usable_processor

_HERE = Path(__file__).parent
_FLAGS = ("-O3", "-shared", "-fPIC", "-std=gnu11", "-pthread")
_TRAINING_FEATURES = frozenset({"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_bf16"})
_AMX_FEATURES = {"amx_tile", "amx_bf16"}
_SECONDS_TO_BUILD = 120.0
_SECONDS_TO_STOP = 2.0

_P, _I, _I64, _F = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64, ctypes.c_float


@dataclass(frozen=True, eq=False)
class Source:
    """A C file that is compiled into a library, and what the library exports and needs."""

    name: str
    """The library's name in the cache."""
    file: str
    """The C file, relative to gptcli/native."""
    functions: dict[str, tuple[Any, list[Any]]]
    """The result type and the argument types of each exported function."""
    expected: dict[str, int]
    """The values that some functions must return: sizes of structs, and numbers of parameters."""
    required_features: frozenset[str] = frozenset()
    """Features that the processor must have, as /proc/cpuinfo calls them."""
    flags: tuple[str, ...] = ()
    """The compiler flags that only this library needs."""


class Shape(ctypes.Structure):
    """Mirror of `Shape` in model.h."""

    _fields_ = [
        *((name, ctypes.c_int32) for name in ("modern", "qk_norm", "tied", "L", "H", "K", "D")),
        *((name, ctypes.c_int32) for name in ("C", "F", "V", "T", "threads")),
        *((name, ctypes.c_float) for name in ("dropout", "norm_eps")),
        ("most_tokens", ctypes.c_int64),
        ("rope_theta", ctypes.c_double),
    ]


class DecoderShape(ctypes.Structure):
    """Mirror of `Shape` in decoder.h."""

    _fields_ = [
        *((name, ctypes.c_int32) for name in ("modern", "qk_norm", "kind", "L", "H", "K", "D")),
        *((name, ctypes.c_int32) for name in ("C", "F", "V", "W", "streams", "threads")),
        ("norm_eps", ctypes.c_float),
        ("rope_theta", ctypes.c_double),
    ]


class SamplingParamsStruct(ctypes.Structure):
    """Mirror of `SamplingParams` in next_token.h."""

    _fields_ = [
        *((name, ctypes.c_double) for name in ("temperature", "top_p", "min_p", "penalty")),
        ("top_k", ctypes.c_int32),
    ]


_PARAMETERS = {
    "global_parameters": len({row.place for row in OUTSIDE_BLOCKS}),
    "layer_parameters": len({row.place for row in IN_BLOCK}),
}

_COMMON_FUNCTIONS: dict[str, tuple[Any, list[Any]]] = {
    "request_amx": (_I, []),
    "compiled_with_amx": (_I, []),
    "shape_bytes": (_I, []),
    "global_parameters": (_I, []),
    "layer_parameters": (_I, []),
}
_TRAINING_FUNCTIONS: dict[str, tuple[Any, list[Any]]] = {
    **_COMMON_FUNCTIONS,
    "number_bytes": (_I, []),
    "gpt_new": (_P, [ctypes.POINTER(Shape), _P]),
    "gpt_free": (None, [_P]),
    "gpt_bytes": (ctypes.c_size_t, [ctypes.POINTER(Shape)]),
    "gpt_pack": (None, [_P, _P]),
    "gpt_loss": (ctypes.c_double, [_P, _P, _P, _P, _P, _I, _I, ctypes.c_uint64, _F, _I]),
    "gpt_adamw": (None, [_I, _I, _P, _P, _P, _P, _P, _P, _F, _F, _F, _F, _I64]),
    "gpt_muon": (_I, [_I, _I, _P, _P, _P, _P, _P, _F, _F, _F, _I]),
}
TRAINING = Source(
    "gpt-bfloat16",
    "train/gpt.c",
    _TRAINING_FUNCTIONS,
    {"shape_bytes": ctypes.sizeof(Shape), "number_bytes": 2, **_PARAMETERS},
    _TRAINING_FEATURES,
    ("-DBFLOAT16=1",),
)
TRAINING_FLOAT32 = Source(
    "gpt-float32",
    "train/gpt.c",
    _TRAINING_FUNCTIONS,
    {"shape_bytes": ctypes.sizeof(Shape), "number_bytes": 4, **_PARAMETERS},
    flags=("-DBFLOAT16=0",),
)
SAMPLING = Source(
    "decode",
    "sample/decode.c",
    {
        **_COMMON_FUNCTIONS,
        "sampling_params_bytes": (_I, []),
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
            [_P, _I, _P, _P, _I, _P, ctypes.POINTER(SamplingParamsStruct), _P, _P, _P, _P, _I, _I],
        ),
    },
    {
        "shape_bytes": ctypes.sizeof(DecoderShape),
        "sampling_params_bytes": ctypes.sizeof(SamplingParamsStruct),
        **_PARAMETERS,
    },
)


@dataclass(frozen=True)
class Found:
    """A loaded library, or the reason why there is none."""

    library: ctypes.CDLL | None
    reason: str
    user_can_fix: bool = False
    """Whether the user can remove the reason, for example by installing a compiler."""


@functools.cache
def find(source: Source) -> Found:
    """The loaded library, or the reason why it cannot be used. Compiles it first if necessary.

    Raises GptcliError only for two variables: if $GPTCLI_CACHE names the home folder of an unknown
    user, or if the kind of processor in $GPTCLI_CPU is unknown or has features that this processor
    lacks."""
    processor = usable_processor()
    if processor is None:
        return Found(None, "this is not Linux or macOS")
    if not processor.features >= source.required_features:
        return Found(None, "the processor has no AVX512-BF16 (or this is not x86-64)")
    try:
        library = _load_cached(source, processor) or _build_and_load(source, processor)
    except (_BuildError, _MismatchError) as error:
        return Found(None, str(error), user_can_fix=True)
    except (OSError, AttributeError) as error:
        return Found(None, f"the built library cannot be loaded: {error}")
    # If the processor has AMX but the library cannot use it, PyTorch trains faster than the
    # library. Sampling is faster with the library even without AMX.
    has_amx = processor.features >= _AMX_FEATURES
    slow = source is TRAINING and has_amx and not library.compiled_with_amx()
    if slow or not library.request_amx():
        return Found(None, "the compiler or the system does not support the processor's AMX tiles")
    return Found(library, "")


def start_building(source: Source) -> None:
    """Start to compile the library in the background if it is not in the cache.

    `find` waits for the compiler."""
    processor = usable_processor()
    if processor is None or not processor.features >= source.required_features:
        return
    if _trusted_file(source, processor) is None:
        with suppress(_BuildError, OSError):  # `find` gets the same error, and reports it
            _Builder.running[source] = _Builder(source, processor)


def start_building_training(dtype: str) -> None:
    """Start to compile the library that a training needs; `dtype` is the training's `run.dtype`.

    Choosing the library needs no PyTorch, so the compiler can start early. No library trains in
    float16."""
    processor = usable_processor()
    if processor is None or dtype == "float16":
        return
    quick = processor.features >= TRAINING.required_features
    start_building(
        TRAINING if dtype == "bfloat16" or (dtype == "auto" and quick) else TRAINING_FLOAT32
    )


def is_compiled(source: Source) -> bool:
    """Whether the library is in the cache, so that `find` need not compile the library."""
    processor = usable_processor()
    if processor is None or not processor.features >= source.required_features:
        return False
    return _trusted_file(source, processor) is not None


class _BuildError(Exception):
    """The library cannot be compiled. The message says why."""


class _MismatchError(Exception):
    """The library's structs or parameters differ from those of the Python code."""


def _load(source: Source, path: Path) -> ctypes.CDLL:
    """Load the library in a file, and set the types of its functions.

    Raises OSError or AttributeError if the file is damaged, and _MismatchError if the library does
    not match the Python code."""
    library = ctypes.CDLL(str(path))
    for name, (result, arguments) in source.functions.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    for name, expected in source.expected.items():
        if (found := getattr(library, name)()) != expected:
            raise _MismatchError(
                f"the C library does not match the Python code: {name} is {found}, not {expected}"
            )
    return library


def _sources() -> list[Path]:
    """The C files and headers of all libraries together, because libraries share headers."""
    return sorted(p for p in _HERE.rglob("*") if p.suffix in (".c", ".h"))


@functools.cache
def _cache_key(source: Source, processor: Processor) -> str:
    """A hash of all C files, the compiler's flags and the processor's features."""
    digest = hashlib.sha256()
    for path in _sources():
        name = path.relative_to(_HERE).as_posix()
        digest.update(name.encode() + b"\0" + path.read_bytes() + b"\0")
    digest.update(
        " ".join((*_FLAGS, *source.flags, *processor.flags, *sorted(processor.features))).encode()
    )
    return digest.hexdigest()[:32]


def _cached_path(source: Source, processor: Processor) -> Path:
    """The path in the cache where the compiled library is or will be."""
    return cache_folder() / "native" / f"{source.name}-{_cache_key(source, processor)}.so"


def _trusted_file(source: Source, processor: Processor) -> Path | None:
    """The path of the compiled library in the cache.

    None if the file is missing, or if another user could have written it."""
    path = _cached_path(source, processor)
    try:
        return path if _only_we_can_write(path) and _only_we_can_write(path.parent) else None
    except OSError:
        return None


def _only_we_can_write(path: Path) -> bool:
    """Whether this user or root owns the path, and nobody else has permission to write to it."""
    found = path.stat()
    return found.st_uid in (os.getuid(), 0) and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _load_cached(source: Source, processor: Processor) -> ctypes.CDLL | None:
    """The library from the cache; None if it is missing, not trusted or damaged."""
    path = _trusted_file(source, processor)
    try:
        return None if path is None else _load(source, path)
    except (OSError, AttributeError):  # the file is damaged, and the next build replaces it
        return None


def _build_and_load(source: Source, processor: Processor) -> ctypes.CDLL:
    """Build and load the library. Waits for the compiler of `start_building`, or starts one."""
    builder = _Builder.running.pop(source, None) or _Builder(source, processor)
    try:
        return _load(source, builder.wait())
    finally:
        builder.remove_temporary_files()


class _Builder:
    """A running compiler, which writes to a temporary file.

    `wait` renames this file when it is complete. If the cache cannot be used, each process compiles
    the library into a private temporary folder. Raises _BuildError if the compiler cannot be
    started."""

    running: ClassVar[dict[Source, _Builder]] = {}
    """The compilers that `start_building` has started, until `find` waits for them."""

    def __init__(self, source: Source, processor: Processor) -> None:
        compiler = find_compiler()
        if compiler is None:
            raise _BuildError(NONE)
        self.target = _cached_path(source, processor)
        self.private: Path | None = None  # the private temporary folder
        try:
            self.target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not _only_we_can_write(self.target.parent):
                raise OSError
            handle, name = tempfile.mkstemp(
                prefix=".building-", suffix=".so", dir=self.target.parent
            )
            _remove_stale_files(self.target.parent)
        except OSError:
            self.private = Path(tempfile.mkdtemp(prefix="gptcli-native-"))
            self.target = self.private / f"{source.name}.so"
            handle, name = tempfile.mkstemp(suffix=".so", dir=self.private)
        os.close(handle)
        self.temporary = Path(name)
        flags = (*_FLAGS, *processor.flags, *source.flags)
        words = [*compiler.words, *map(compiler.flag, flags), "-o", name]
        words += [str(_HERE / source.file), "-lm"]
        try:
            self.process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                start_new_session=True,  # a process group, which stop_compiler can stop
                env={**os.environ, **compiler.environment(self.target.parent)},
            )
        except OSError as error:
            self.remove_temporary_files()
            command = " ".join(compiler.words)
            raise _BuildError(f"`{command}` cannot be run ({error.strerror})") from None
        atexit.register(self.abandon)

    def abandon(self) -> None:
        """Clean up if gptcli ends before `wait` was called. A complete library stays cached."""
        if self.process.poll() is None:
            self.stop_compiler()
        elif self.process.returncode == 0 and self.private is None and self.temporary.exists():
            self.temporary.chmod(0o700)  # the library is complete, so the next process can load it
            self.temporary.replace(self.target)
        self.remove_temporary_files()

    def stop_compiler(self) -> None:
        """Stop the compiler and all processes that it started.

        Sends SIGTERM first, because gcc then removes its own temporary files."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, number)
            try:
                self.process.communicate(timeout=_SECONDS_TO_STOP)
                return
            except subprocess.TimeoutExpired:
                pass

    def remove_temporary_files(self) -> None:
        """Remove the temporary file and the private folder.

        A loaded library does not need its file."""
        self.temporary.unlink(missing_ok=True)
        if self.private is not None:
            shutil.rmtree(self.private, ignore_errors=True)

    def wait(self) -> Path:
        """The path of the compiled library. Waits until the compiler has ended.

        Raises _BuildError if the compiler fails or takes too long."""
        try:
            _, errors = self.process.communicate(timeout=_SECONDS_TO_BUILD)
        except subprocess.TimeoutExpired:
            self.stop_compiler()
            raise _BuildError("the C compiler failed: it took too long") from None
        if self.process.returncode != 0:
            raise _BuildError(f"the C compiler failed: {_first_error(errors)}")
        self.temporary.chmod(0o700)
        fsync_file(self.temporary)
        self.temporary.replace(self.target)
        return self.target


def _abandon_all() -> None:
    for builder in list(_Builder.running.values()):
        builder.abandon()


before_leaving.append(_abandon_all)


def _first_error(errors: bytes) -> str:
    """The first line with "error" in a compiler's output, or simply the first line.

    If an error is in a header, gcc first lists the files that include this header."""
    lines = errors.decode("utf-8", "replace").strip().splitlines() or ["without a message"]
    return next((line for line in lines if "error" in line), lines[0]).strip()


def _remove_stale_files(folder: Path) -> None:
    """Remove temporary files older than 20 minutes, which killed processes have left."""
    for path in folder.glob(".building-*"):
        with suppress(OSError):  # another process can have removed the file
            if path.stat().st_mtime < time.time() - 10 * _SECONDS_TO_BUILD:
                path.unlink()
