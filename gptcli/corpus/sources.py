"""Finds and hashes the files of data.source: a shipped text, a file, a .jsonl or a folder."""

from __future__ import annotations

import hashlib
import os
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from gptcli.corpus.progress import Advance, Progress, ignore
from gptcli.corpus.reading import (
    CHUNK,
    BinaryFileError,
    Piece,
    jsonl_pieces,
    open_bytes,
    refuse_binary,
    signature,
    text_pieces,
)
from gptcli.errors import GptcliError, nearest
from gptcli.files.leftovers import POINTER_HINT, is_editor_backup, is_lfs_pointer
from gptcli.files.shipped import shipped_texts


@dataclass(frozen=True)
class SourceFile:
    """A file, with its hash, and its size and time of change at the moment of hashing."""

    path: Path
    signature: tuple[int, int]
    sha256: str

    @property
    def jsonl(self) -> bool:
        """Whether each line is a separate document."""
        return self.path.suffix.lower() == ".jsonl"

    def pieces(self, advance: Advance = ignore) -> Iterator[Piece]:
        """Stream the documents. Raises GptcliError if the file has changed since it was hashed."""
        self._refuse_change()
        yield from (jsonl_pieces if self.jsonl else text_pieces)(self.path, advance)
        self._refuse_change()

    def _refuse_change(self) -> None:
        with open_bytes(self.path) as file:
            if signature(file) != self.signature:
                raise GptcliError(
                    f"{self.path} changed while it was read",
                    "run the command again when no program writes to it",
                    exit_code=1,
                )


@dataclass(frozen=True)
class Source:
    """The files of a corpus, in order, and notes about them for the user."""

    name: str
    files: tuple[SourceFile, ...]
    notes: tuple[str, ...]

    @property
    def size(self) -> int:
        """The size of all files in bytes."""
        return sum(file.signature[0] for file in self.files)

    @cached_property
    def content_key(self) -> str:
        """SHA-256 (hex) of the content of all files in order; does not depend on their names."""
        digest = hashlib.sha256()
        for file in self.files:
            digest.update(f"{'jsonl' if file.jsonl else 'text'} {file.sha256}\n".encode())
        return digest.hexdigest()

    def pieces(self, advance: Advance = ignore) -> Iterator[Piece]:
        """Stream the pieces of all documents in order. Each call starts another pass.

        Raises GptcliError if a file is not UTF-8, a line of a .jsonl is not valid, or a file has
        changed since it was hashed."""
        for file in self.files:
            yield from file.pieces(advance)


def find_source(source: str, progress: Progress | None = None) -> Source:
    """The files that `source` names, hashed: a shipped text, a text file, a .jsonl or a folder.

    A folder is read recursively. Its files are sorted by path, character by character, which gives
    the same order on every system. Hidden files, linked folders and binary files are left out; a
    note names the binary ones. Raises GptcliError if there is no such text, or if a single file is
    empty, binary or not readable."""
    progress = progress or Progress(False)
    notes: list[str] = []
    shipped = shipped_texts()
    if source in shipped:
        path = shipped[source]
        if Path(source).exists():
            notes.append(
                f"`{source}` is the shipped text; write .{os.sep}{source} for the "
                "file or folder with that name"
            )
    else:
        path = _existing(source)
    if path.is_dir():
        files = _survey_folder(path, progress, notes)
    elif path.is_file():
        files = [_survey_file(path, progress)]
    else:
        raise GptcliError(
            f"{path} is neither a file nor a folder",
            "a text is read more than once: save the data of a pipe or a device in a file",
        )
    return Source(source, tuple(files), tuple(notes))


def _existing(source: str) -> Path:
    try:
        path = Path(source).expanduser()
        if source and path.exists():
            return path
    except (OSError, RuntimeError):  # the name is too long, or the `~user` is unknown
        path = Path(source)
    raise _missing(source, path)


def _missing(source: str, path: Path) -> GptcliError:
    shipped = list(shipped_texts())
    choices = f"the shipped texts are: {', '.join(shipped)}" if shipped else "no text is shipped"
    if not source:
        return GptcliError("the name of the text is empty", choices)
    if any(character < " " for character in source):  # `"texts\new.txt"` in a config
        return GptcliError(
            f"no shipped text, file or folder is named {source!r}",
            "in double quotes YAML reads \\n as a newline and \\t as a tab: write the path in "
            "single quotes, or with /",
        )
    message = f"no shipped text, file or folder is named `{source}`"
    try:
        neighbours = [entry.name for entry in path.parent.iterdir()]
    except OSError:
        return GptcliError(f"{message}: there is no folder {path.parent}", choices)
    found = nearest(source, shipped)
    if found is None and (name := nearest(path.name, neighbours)):
        found = str(path.with_name(name))
    if found is None:
        return GptcliError(message, f"{choices}; or give the path of a text, a folder or a .jsonl")
    return GptcliError(message, f"did you mean `{found}`?")


def _survey_file(path: Path, progress: Progress) -> SourceFile:
    with progress.phase("reading", _size(path)) as advance:
        file = _hashed(path, advance)
    if file.signature[0] == 0:
        raise GptcliError(f"{path} is empty", "give a file with text in it")
    return file


def _survey_folder(folder: Path, progress: Progress, notes: list[str]) -> list[SourceFile]:
    paths = _files_below(folder)
    backups = [path for path in paths if is_editor_backup(path.name)]
    paths = [path for path in paths if not is_editor_backup(path.name)]
    files, binary = [], []
    with progress.phase("reading", sum(map(_size, paths))) as advance:
        for path in paths:
            try:
                files.append(_hashed(path, advance))
            except BinaryFileError:
                binary.append(path.relative_to(folder).as_posix())
    if backups:
        named = ", ".join(path.relative_to(folder).as_posix() for path in backups[:3])
        more = f" and {len(backups) - 3} more" if len(backups) > 3 else ""
        notes.append(f"left out the backups of an editor in {folder}: {named}{more}")
    if binary:
        more = f" and {len(binary) - 3} more" if len(binary) > 3 else ""
        what = "1 file that is" if len(binary) == 1 else f"{len(binary)} files that are"
        notes.append(f"skipped {what} not text, in {folder}: {', '.join(binary[:3])}{more}")
    if not any(file.signature[0] for file in files):
        hint = "put text files (UTF-8) or .jsonl files into it"
        raise GptcliError(f"no text in the folder {folder}: {_why_no_text(len(paths))}", hint)
    return files


def _why_no_text(files: int) -> str:
    if files == 0:
        return "it has no files, except hidden ones"
    return f"{'its only file is' if files == 1 else f'its {files} files are'} binary or empty"


def _files_below(folder: Path) -> list[Path]:
    found: list[Path] = []

    def refuse(error: OSError, what: str = "the folder ") -> None:
        raise GptcliError(
            f"cannot read {what}{error.filename}: {error.strerror}",
            "check that you can read it",
        ) from error

    for place, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        inside = [Path(place, name) for name in names if not name.startswith(".")]
        try:
            found += [path for path in inside if path.is_file()]
        except OSError as error:  # a link to a folder that cannot be read
            refuse(error, "")
    return sorted(found, key=lambda path: _order(path.relative_to(folder)))


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # removed meanwhile; opening it raises an error
        return 0


def _order(path: Path) -> list[str]:
    # macOS can return decomposed names, and Windows compares paths without case.
    return [unicodedata.normalize("NFC", part) for part in path.parts]


def _hashed(path: Path, advance: Advance) -> SourceFile:
    digest = hashlib.sha256()
    offset = 0
    with open_bytes(path) as file:
        before = signature(file)
        while chunk := file.read(CHUNK):
            refuse_binary(path, chunk, offset)
            if offset == 0 and is_lfs_pointer(chunk):
                raise GptcliError(f"{path} is a git-lfs pointer, not the text itself", POINTER_HINT)
            digest.update(chunk)
            offset += len(chunk)
            advance(len(chunk))
    # `before` is the signature from before hashing. So if the file grew during hashing, the text's
    # reader finds another signature.
    return SourceFile(path, before, digest.hexdigest())
