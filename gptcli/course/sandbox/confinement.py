"""Confines a student's code to its folder: no writing outside, no reading of other students' work.

It uses three protections. The first two also hold for all processes that the code starts:
- Landlock protects files (since Linux 5.13), TCP (since 6.7) and signals (since 6.12). Source:
  kernel.org, "Landlock: unprivileged access control".
- seccomp protects what Landlock does not: the permissions, owners and times of files.
- An audit hook in Python raises errors that say what is wrong. On kernels without Landlock, only
  this hook protects the contents of files.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

_CREATE, _ADD, _RESTRICT = 444, 445, 446  # system calls of Landlock; the same on x86 and ARM
_NO_NEW_PRIVILEGES = 38  # prctl(2)
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_TRUNCATE, _IOCTL = 1 << 14, 1 << 15
_OF_FILES = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL
_SYSTEM = (
    "/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/etc", "/opt", "/nix", "/proc", "/sys",
)  # fmt: skip
_DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")
# audit event -> the positions of the arguments that are paths of what the call changes
_PATHS: dict[str, tuple[int, ...]] = {
    "os.remove": (0,), "os.rmdir": (0,), "os.mkdir": (0,), "os.rename": (0, 1), "os.link": (1,),
    "os.symlink": (1,), "os.truncate": (0,), "os.chmod": (0,), "os.chown": (0,), "os.utime": (0,),
    "os.setxattr": (0,), "os.removexattr": (0,), "os.lchmod": (0,), "os.chflags": (0,),
    "shutil.rmtree": (0,), "shutil.move": (0, 1),
}  # fmt: skip
_DIRECTORY_OF = {"os.remove": 1, "os.rmdir": 1, "os.mkdir": 2, "os.chmod": 2, "os.chown": 3,
                 "os.utime": 3}  # fmt: skip
"""Audit event -> which argument is its `dir_fd`: the descriptor of a folder, or -1 (no folder)."""


def landlock_version() -> int:
    """The kernel's version of Landlock; 0 if the kernel has no Landlock."""
    if sys.platform != "linux":
        return 0
    found = _call(_CREATE, None, ctypes.c_size_t(0), ctypes.c_uint32(1))
    return max(found, 0)


def confine(folder: Path, hidden: Path) -> None:
    """Let this process write only in `folder`, and read nothing in `hidden` except `folder`.

    Python's own folders stay readable, even in `hidden`, unless they contain `hidden`. With
    Landlock the process can read only `folder`, the system's folders, Python's own and the caches
    of matplotlib. Temporary files go into `folder`. The process cannot undo this."""
    folder, hidden = folder.resolve(), hidden.resolve()
    inner = folder / ".tmp"
    inner.mkdir(exist_ok=True)
    os.environ.update(TMPDIR=str(inner), TEMP=str(inner), TMP=str(inner))
    tempfile.tempdir = str(inner)
    readable = [path for path in (*_own_folders(), *_caches()) if not _holds(path, hidden)]
    with contextlib.suppress(OSError):  # the kernel can refuse Landlock to this process
        _landlock(folder, readable)
    with contextlib.suppress(OSError):
        _keep_attributes()
    _guard(folder, hidden, readable)


def _own_folders() -> list[Path]:
    """The folders of Python, of its packages and of gptcli, and the system's folders."""
    import gptcli

    names = {sys.prefix, sys.base_prefix, sys.exec_prefix, *sysconfig.get_paths().values()}
    names |= {entry for entry in sys.path if entry and Path(entry).is_dir()}
    package = Path(gptcli.__file__).parent
    found = [Path(name).resolve() for name in names]
    return [*found, package, package.parent / "data", *map(Path, _SYSTEM)]


def _caches() -> list[Path]:
    """The folders with matplotlib's list of fonts.

    Without this list, matplotlib makes a new list in each check."""
    home = os.environ.get("HOME") or "/root"
    caches = os.environ.get("XDG_CACHE_HOME") or f"{home}/.cache"
    settings = os.environ.get("XDG_CONFIG_HOME") or f"{home}/.config"
    named = os.environ.get("MPLCONFIGDIR")
    found = [Path(caches) / "matplotlib", Path(settings) / "matplotlib"]
    return [Path(named), *found] if named else found


def _holds(path: Path, hidden: Path) -> bool:
    """Whether `path` is `hidden` or a folder above it."""
    return hidden == path or path in hidden.parents


# ---- Landlock ------------------------------------------------------------------------------------


class _Ruleset(ctypes.Structure):
    _fields_ = [
        ("files", ctypes.c_uint64),
        ("network", ctypes.c_uint64),
        ("scoped", ctypes.c_uint64),
    ]


class _Beneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = [("allowed", ctypes.c_uint64), ("folder", ctypes.c_int32)]


def _landlock(folder: Path, readable: Iterable[Path]) -> None:
    """Let the kernel refuse access to all files except those in `folder` and `readable`.

    The process can read and change files in `folder`. It can only read those in `readable`.
    _DEVICES stay usable. The kernel also refuses TCP (since Linux 6.7) and signals to other
    processes (since 6.12). Does nothing if the kernel has no Landlock. Raises OSError if the kernel
    does not let this process use Landlock."""
    version = landlock_version()
    if version == 0:
        return
    every = (1 << (13 + (version >= 2) + (version >= 3))) - 1
    every |= _IOCTL if version >= 5 else 0
    rules = _Ruleset(every, 3 if version >= 4 else 0, 3 if version >= 6 else 0)
    size = 8 * (1 + (version >= 4) + (version >= 6))
    ruleset = _call(_CREATE, ctypes.byref(rules), ctypes.c_size_t(size), ctypes.c_uint32(0))
    if ruleset < 0:
        raise OSError(ctypes.get_errno(), "landlock_create_ruleset")
    try:
        _allow(ruleset, folder, every)
        for path in readable:
            _allow(ruleset, path, _EXECUTE | _READ_FILE | _READ_DIR)
        for name in _DEVICES:
            _allow(ruleset, Path(name), (_READ_FILE | _WRITE_FILE | _TRUNCATE) & every)
        ctypes.CDLL(None).prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0)
        if _call(_RESTRICT, ctypes.c_int(ruleset), ctypes.c_uint32(0)) < 0:
            raise OSError(ctypes.get_errno(), "landlock_restrict_self")
    finally:
        os.close(ruleset)


def _allow(ruleset: int, path: Path, rights: int) -> None:
    """Allow `rights` for the file `path`, or for all files in the folder `path`.

    Does nothing if `path` does not exist."""
    try:
        at = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        beneath = _Beneath(rights if path.is_dir() else rights & _OF_FILES, at)
        _call(_ADD, ctypes.c_int(ruleset), ctypes.c_int(1), ctypes.byref(beneath),
              ctypes.c_uint32(0))  # fmt: skip
    finally:
        os.close(at)


def _call(number: int, *arguments: Any) -> int:
    """The result of a system call; -1 if the call fails or does not exist."""
    try:
        library = ctypes.CDLL(None, use_errno=True)
        return int(library.syscall(ctypes.c_long(number), *arguments))
    except (OSError, AttributeError):
        return -1


# ---- seccomp -------------------------------------------------------------------------------------

_MODE_FILTER, _PR_SET_SECCOMP = 2, 22
_ALLOW, _PRETEND = 0x7FFF0000, 0x00050000  # _PRETEND: the call does nothing and returns 0
_REFUSE = _PRETEND | errno.ENOSYS
_LOAD, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06
_ATTRIBUTE_CALLS = {  # chmod, chown, utime, setxattr, removexattr and the like
    "x86_64": (0xC000003E, (90, 91, 92, 93, 94, 132, 188, 189, 190, 197, 198, 199, 235, 260, 261,
                            268, 280, 452, 463, 466, 469)),
    "aarch64": (0xC00000B7, (5, 6, 7, 14, 15, 16, 52, 53, 54, 55, 88, 452, 463, 466, 469)),
}  # fmt: skip
_X32 = 0x40000000


class _Instruction(ctypes.Structure):
    _fields_ = [
        ("code", ctypes.c_uint16), ("then", ctypes.c_uint8), ("otherwise", ctypes.c_uint8),
        ("value", ctypes.c_uint32),
    ]  # fmt: skip


class _Program(ctypes.Structure):
    _fields_ = [("count", ctypes.c_ushort), ("first", ctypes.POINTER(_Instruction))]


def _keep_attributes() -> None:
    """Disable the system calls that change attributes of files: they do nothing and return 0.

    The attributes are permissions, owners, times and extended attributes.

    Has no effect except on Linux with x86-64 or ARM64."""
    known = _ATTRIBUTE_CALLS.get(os.uname().machine) if sys.platform == "linux" else None
    if known is None:
        return
    architecture, numbers = known
    lines = [
        (_LOAD, 0, 0, 4),  # load the architecture of the system call
        (_EQUAL, 1, 0, architecture),
        (_RETURN, 0, 0, _REFUSE),  # 32-bit programs number their calls differently
        (_LOAD, 0, 0, 0),  # load the number of the system call
        (_AT_LEAST, len(numbers) + 1, 0, _X32),  # for all calls of the x32 ABI: _PRETEND
    ]
    lines += [(_EQUAL, len(numbers) - i, 0, number) for i, number in enumerate(numbers)]
    lines += [(_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, _PRETEND)]
    code = (_Instruction * len(lines))(*(_Instruction(*line) for line in lines))
    library = ctypes.CDLL(None)
    library.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    library.prctl(_PR_SET_SECCOMP, _MODE_FILTER, ctypes.byref(_Program(len(lines), code)), 0, 0)


# ---- the audit hook ------------------------------------------------------------------------------


def _guard(folder: Path, hidden: Path, readable: Iterable[Path]) -> None:
    """Let Python refuse to change files outside `folder`, and to read files in `hidden`.

    Files in `folder` and in the folders `readable` can be read even if they are in `hidden`:
    `.venv`, for example, is often beside the students' folders."""
    inside, secret = f"{folder}{os.sep}", f"{hidden}{os.sep}"
    open_here = tuple(f"{path}{os.sep}" for path in readable if hidden in path.parents)
    allowed = {*_DEVICES}
    me = os.getpid()

    def is_inside(path: str) -> bool:
        return f"{path}{os.sep}".startswith(inside) or path in allowed

    def refuse_change(path: str, what: str) -> None:
        if not is_inside(path):
            raise _refused(f"{what}: a graded file can change nothing outside its folder", path)

    def refuse_read(path: str, what: str) -> None:
        place = f"{path}{os.sep}"
        if place.startswith(secret) and not (is_inside(path) or place.startswith(open_here)):
            raise _refused(f"{what}: a graded file cannot read the work of other students", path)

    def on_open(path: Any, mode: Any, flags: Any) -> None:
        if isinstance(path, int) or path is None:
            return
        where = str(Path(_absolute(path)).resolve())
        writes = isinstance(flags, int) and flags & (
            os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
        )
        if writes:
            refuse_change(where, "open")
        else:
            refuse_read(where, "open")

    def on_list(path: Any = None, *_: Any) -> None:
        if path is not None and not isinstance(path, int):
            refuse_read(str(Path(_absolute(path)).resolve()), "listdir")

    def on_signal(process: Any, number: Any = 0) -> None:
        from gptcli.course.sandbox.descendants import descendants

        here = os.getpid()
        if number not in (0, None) and process not in (here, 0, me, *descendants()):
            raise _refused("kill: a graded file can end only processes that it started")

    handlers: dict[str, Callable[..., None]] = {
        "open": on_open, "os.listdir": on_list, "os.scandir": on_list, "os.kill": on_signal,
        "os.killpg": on_signal,
    }  # fmt: skip

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        handler = handlers.get(event)
        if handler is not None:
            handler(*arguments)
        for place in _PATHS.get(event, ()):
            path = arguments[place] if place < len(arguments) else None
            if path is None or isinstance(path, int):
                continue
            at = _DIRECTORY_OF.get(event)
            base = arguments[at] if at is not None and at < len(arguments) else -1
            refuse_change(_absolute(path, base), event)

    sys.addaudithook(watch)


def _refused(why: str, path: str | None = None) -> PermissionError:
    return PermissionError(errno.EACCES, why, path)


def _absolute(path: Any, base: Any = -1) -> str:
    """The absolute path of `path`, with `..` and links resolved, except for a link at the end.

    Operations such as os.remove act on such a link, not on its target. `base` is the descriptor of
    the folder to which the path is relative, or -1."""
    where = Path(os.fsdecode(path))
    if isinstance(base, int) and base >= 0 and not where.is_absolute():
        with contextlib.suppress(OSError):
            where = Path(f"/proc/self/fd/{base}").readlink() / where
    if where.name in ("", ".."):
        return str(where.resolve())
    return str(where.parent.resolve() / where.name)
