"""Files at a URL (s3://, gs://, hf://, ...), read and written through fsspec.

fsspec is imported when the first URL is opened. fsspec knows many protocols; some of them open
other URLs or unpack archives. gptcli accepts only the protocols in PROTOCOLS, and no chain of
protocols (`a::b`).
"""

from __future__ import annotations

import errno
import re
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from gptcli.errors import GptcliError, nearest

PROTOCOLS = {
    "s3": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "hf": "huggingface_hub",
    "az": "adlfs",
    "abfs": "adlfs",
    "http": "aiohttp",
    "https": "aiohttp",
    "file": "fsspec",
    "memory": "fsspec",
}
"""Protocol of a URL -> the package that it needs."""

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_PAUSES = (0.5, 2.0, 5.0)  # seconds to wait before the second, third and fourth try
_LASTING = {
    errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.EACCES, errno.EPERM,
    errno.EROFS, errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC), errno.EFBIG,
    errno.ENAMETOOLONG,
}  # fmt: skip
"""The errno of errors after which no new try is made, because the error would occur again."""
T = TypeVar("T")


def is_url(name: str) -> bool:
    """Whether `name` is a URL, instead of a path on this machine."""
    return _URL.match(name) is not None


def joined(url: str, name: str) -> str:
    """The URL of the file `name` in the folder `url`."""
    return f"{url.rstrip('/')}/{name}"


class RemoteFolder:
    """The folder at a URL. If the network fails, each method tries up to four times.

    Every method raises GptcliError if it fails."""

    def __init__(self, url: str) -> None:
        """Raises GptcliError if the protocol is unknown or its package is missing."""
        protocol = _protocol(url)
        try:
            from fsspec.core import url_to_fs

            self._fs: Any
            self._fs, path = url_to_fs(url)
        except ImportError as error:
            package = PROTOCOLS[protocol]
            raise GptcliError(
                f"{url}: {protocol}:// needs the package {package} ({error})",
                f"pip install {package}",
            ) from None
        except Exception as error:  # each protocol's package raises its own errors
            raise _failed("open", url, error) from None
        self.url = url.rstrip("/")
        self._is_local = protocol == "file"
        self._path = str(path).rstrip("/")

    def read(self, name: str, start: int, stop: int) -> bytes:
        """The bytes of a file from `start` up to `stop`, or up to its end if this comes first."""
        content: bytes = self._try(
            "read", name, lambda path: self._fs.cat_file(path, start=start, end=stop)
        )
        return content

    def read_small(self, name: str, most: int) -> bytes:
        """The content of a file. Also raises GptcliError if it has more than `most` bytes."""
        content = self.read(name, 0, most + 1)
        if len(content) > most:
            raise GptcliError(
                f"{joined(self.url, name)} has more than {most:,} bytes",
                "check that gptcli wrote this file",
            )
        return content

    def size(self, name: str) -> int | None:
        """The size of a file in bytes; None if there is no such file."""

        def found(path: str) -> int | None:
            try:
                return int(self._fs.size(path) or 0)
            except FileNotFoundError:
                return None

        return self._try("look for", name, found)

    def names(self, folder: str = "") -> list[str]:
        """The names of everything in a folder, sorted; [] if the folder is missing."""

        def found(path: str) -> list[str]:
            try:
                listed = self._fs.ls(path, detail=False, refresh=True)
            except FileNotFoundError:
                return []
            return sorted({str(each).rstrip("/").rpartition("/")[2] for each in listed})

        return self._try("list", folder, found)

    def write(self, name: str, content: bytes) -> None:
        """Write a file, or replace the file of this name."""

        self._put(name, lambda path: self._fs.pipe_file(path, content))

    def upload(self, source: str, name: str) -> None:
        """Copy a file of this machine into the folder."""

        self._put(name, lambda path: self._fs.put_file(source, path))

    def download(self, name: str, goal: str) -> None:
        """Copy a file from the folder to this machine."""
        self._try("read", name, lambda path: self._fs.get_file(path, goal))

    def delete(self, folder: str) -> None:
        """Delete a subfolder with everything in it, if it exists."""

        def remove(path: str) -> None:
            if self._fs.exists(path):
                self._fs.rm(path, recursive=True)

        self._try("delete", folder, remove)

    def _put(self, name: str, write: Callable[[str], None]) -> None:
        """Write a file. If writing fails, an existing file of this name does not change.

        Object stores show a file only when it is complete. A disk (file://) shows incomplete files,
        so there the file is first written under a temporary name."""

        def put(path: str) -> None:
            self._fs.makedirs(path.rpartition("/")[0], exist_ok=True)
            if not self._is_local:
                return write(path)
            part = f"{path}.part"
            try:
                write(part)
                Path(part).replace(path)
            finally:
                with suppress(OSError):
                    Path(part).unlink()

        self._try("write", name, put)

    def _try(self, verb: str, name: str, do: Callable[[str], T]) -> T:
        path = f"{self._path}/{name}" if name else self._path
        url = joined(self.url, name) if name else self.url
        for pause in (*_PAUSES, None):
            try:
                return do(path)
            except Exception as error:  # many packages raise many types of errors
                lasts = isinstance(error, (FileNotFoundError, PermissionError, IsADirectoryError))
                if lasts or getattr(error, "errno", None) in _LASTING or pause is None:
                    raise _failed(verb, url, error) from None
                time.sleep(pause)
        raise AssertionError


def _protocol(url: str) -> str:
    """The protocol of a URL. Raises GptcliError for a chain (`a::b`) or an unknown protocol."""
    found = _URL.match(url)
    protocol = found[1].lower() if found else ""
    if protocol not in PROTOCOLS or "::" in url:
        close = nearest(protocol, PROTOCOLS)
        raise GptcliError(
            f"{url[:200]}: gptcli reads no URL of this form",
            f"did you mean {close}://?"
            if close and close != protocol
            else "the protocols are " + ", ".join(f"{name}://" for name in PROTOCOLS),
        )
    return protocol


def reason(error: Exception) -> str:
    """The cause of an error, on one line.

    If the errno is in _LASTING, returns the system's message, such as "No space left on device".
    Otherwise, returns the type of the error and its message."""
    if isinstance(error, OSError) and error.strerror and error.errno in _LASTING:
        return error.strerror
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def _failed(verb: str, url: str, error: Exception) -> GptcliError:
    what = "there is no such file" if isinstance(error, FileNotFoundError) else reason(error)
    return GptcliError(
        f"cannot {verb} {url}: {what}",
        "check the URL, the network and your credentials",
        exit_code=1,
    )
