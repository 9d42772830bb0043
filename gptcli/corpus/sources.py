"""Finds and hashes the files of data.source: shipped texts, files, folders, standard input."""

from __future__ import annotations

import hashlib
import os
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from gptcli.config import DataConfig
from gptcli.corpus.documents import END_OF_TEXT
from gptcli.corpus.formats import Format, choose_format, compressed, named_kind
from gptcli.corpus.progress import Advance, Progress, ignore
from gptcli.corpus.reading import (
    CHUNK,
    WIDE,
    BinaryFileError,
    Piece,
    UndecodableError,
    codec_name,
    open_bytes,
    open_content,
    refuse_binary,
    signature,
)
from gptcli.corpus.records import NoSuchFieldError
from gptcli.corpus.standard_input import STDIN, is_standard_input, standard_input
from gptcli.corpus.undecodable import first_problem, is_cut_off, undecodable_files
from gptcli.errors import GptcliError, nearest
from gptcli.files.caches import cache_folder
from gptcli.files.leftovers import POINTER_HINT, is_editor_backup, is_lfs_pointer
from gptcli.files.names import exists, path_of, shown
from gptcli.files.shipped import shipped_texts
from gptcli.plurals import agreeing, counted

_MARK = END_OF_TEXT.strip("<>").encode()  # without `<` and `>`, which JSON can escape


@dataclass(frozen=True)
class SourceFile:
    """A file, how to read it, its hash, and the `signature` it had before it was hashed."""

    path: Path
    signature: tuple[int, int]
    sha256: str
    format: Format

    def pieces(
        self, advance: Advance = ignore, ended: Callable[[int], object] = ignore
    ) -> Iterator[Piece]:
        """Stream the documents.

        Each call of `ended` gets the number of `<|endoftext|>` that were found after the previous
        call. Raises GptcliError if the file has changed since it was hashed."""
        self._refuse_change()
        yield from self.format.pieces(self.path, advance, ended)
        self._refuse_change()

    def _refuse_change(self) -> None:
        with open_bytes(self.path) as file:
            if signature(file) != self.signature:
                raise GptcliError(
                    f"{shown(self.path)} changed while it was read",
                    "run the command again when no program writes to the file",
                    exit_code=1,
                )


@dataclass(frozen=True)
class Source:
    """The files of a text to train on, in order, and notes for the user about these files."""

    name: str
    files: tuple[SourceFile, ...]
    notes: tuple[str, ...]
    val: Source | None = None
    """The text of data.val_source; None if the user named none."""
    counts: tuple[int, ...] = ()
    """The number of files of each text of data.source."""

    @property
    def size(self) -> int:
        """The size in bytes of all files of data.source."""
        return sum(file.signature[0] for file in self.files)

    @cached_property
    def content_key(self) -> str:
        """SHA-256 (hex) of the content and the format of all files, in order.

        The key does not depend on the names of the files."""
        digest = hashlib.sha256()
        for file in self.files:
            digest.update(f"{file.format.key} {file.sha256}\n".encode())
        if self.val is not None:
            digest.update(f"validation {self.val.content_key}\n".encode())
        return digest.hexdigest()

    @property
    def one_document(self) -> bool:
        """Whether the text is certainly one document.

        This is so for a single file of plain text in UTF-8 that is not split at lines or at
        `<|endoftext|>`, if there is no validation text."""
        return len(self.files) == 1 and self.files[0].format == Format("text") and self.val is None

    def pieces(
        self,
        advance: Advance = ignore,
        ended: Callable[[int], object] = ignore,
        begins: Callable[[], object] = lambda: None,
    ) -> Iterator[Piece]:
        """Stream the pieces of all documents of data.source in order.

        Each call reads all files again. `begins` is called before the pieces of each file. Each
        call of `ended` gets the number of `<|endoftext|>` that were found after the previous call.
        Raises GptcliError if a file is not text, has an invalid record, or has changed since it was
        hashed."""
        for file in self.files:
            begins()
            try:
                yield from file.pieces(advance, ended)
            except UndecodableError as error:
                files = [(file.path, file.format.encoding) for file in self.files]
                raise (undecodable_files(files, len(files) > 1) or error) from error

    def beginning(self, characters: int) -> tuple[str, float]:
        """The first characters of the text, and an estimate of how many characters it has in all.

        The estimate is the number of characters found, times the size of all files, divided by the
        number of bytes read. So the estimate is also good for compressed files and for records with
        several fields. If all files were read, the number of characters is exact."""
        parts: list[str] = []
        read = read_as = found = 0  # the first `read` bytes decode to `read_as` characters

        def advance(count: int) -> None:
            nonlocal read, read_as
            read, read_as = read + count, found

        for piece in self.pieces(advance):
            parts.append(piece.text)
            found += len(piece.text)
            if found >= characters and read_as and read < self.size:
                return "".join(parts)[:characters], read_as * max(1.0, self.size / read)
        return "".join(parts)[:characters], float(found)


@dataclass
class _Survey:
    """Facts about the files of a text, found while the files are hashed."""

    data: DataConfig
    advance: Advance = ignore
    notes: list[str] = field(default_factory=list)
    plain: list[str] = field(default_factory=list)  # .json and .csv read as text: "NAME (WHY)"
    converted: list[str] = field(default_factory=list)  # files that are read in data.encoding
    left_out: dict[str, list[str]] = field(default_factory=dict)  # reason -> names of files
    skipped: dict[Path, GptcliError] = field(default_factory=dict)  # file -> why it was skipped


def find_source(data: DataConfig | str, progress: Progress | None = None) -> Source:
    """The files that data.source and data.val_source name, with their hashes.

    `data` can also be a string: the value of data.source. If a text is a folder, all files in it
    and in its subfolders are used, sorted by the parts of their paths, so that the order is the
    same on every system. These are left out: hidden files and folders, links to folders, run
    folders, caches, backups of editors, binary files, and files whose records lack data.field. If
    data.skip_undecodable is true, files that are not text in their encoding are left out, too. A
    file that is named twice is used once, for validation if data.val_source names it. The notes say
    what was left out, except hidden files.

    Raises GptcliError if a text does not exist, if a folder has no usable files, or if no file is
    left for training. For a text that is a single file, also raises GptcliError if the file is
    unreadable or empty, or if data.skip_undecodable is false and the file is not text in its
    encoding."""
    data = section_of(data)
    progress = progress or Progress(False)
    val = None
    if data.val_sources:
        val = _found(data.val_sources, data, progress, set())
    used = {file.path.resolve() for file in val.files} if val is not None else set()
    found = _found(data.sources, data, progress, used)
    notes = (*found.notes, *(val.notes if val is not None else ()))
    return Source(data.name, found.files, tuple(dict.fromkeys(notes)), val, found.counts)


def section_of(data: DataConfig | str) -> DataConfig:
    """The config section `data`. If `data` is a string, it is the value of data.source."""
    # DataConfig does not validate the name here, because later errors about an empty or odd name
    # say more.
    if not isinstance(data, str):
        return data
    undecodable = any("\ud800" <= character <= "\udfff" for character in data)
    return DataConfig.model_construct(source=shown(data) if undecodable else data)


def _found(
    names: list[str], data: DataConfig, progress: Progress, for_validation: set[Path]
) -> Source:
    """The files of several texts. Each file is used only once.

    Files in `for_validation` are left out."""
    survey = _Survey(data)
    files: list[SourceFile] = []
    counts: list[int] = []
    for name in names:
        path = _path_of_text(name, data.field, survey.notes)
        before = {file.path.resolve() for file in files} if len(names) > 1 else set()
        if path.is_dir():
            found = _survey_folder(path, progress, survey)
        elif path.is_file():
            found = _survey_file(path, progress, survey)
        else:
            raise GptcliError(
                f"{shown(path)} is neither a file nor a folder",
                "gptcli reads a text more than once, but a pipe or a device can be read only once: "
                f"save the data in a file, or use standard input: gptcli train - < {shown(path)}",
            )
        used = before | for_validation
        twice = [file.path for file in found if used and file.path.resolve() in used]
        for path in twice:
            why = "used for validation" if path.resolve() in for_validation else "named twice"
            survey.left_out.setdefault(why, []).append(shown(path))
        kept = [file for file in found if file.path not in twice]
        files += kept
        counts.append(len(kept))
    name = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    if not files and survey.skipped:
        bad = [path for path, why in survey.skipped.items() if isinstance(why, UndecodableError)]
        error = undecodable_files([(path, data.encoding) for path in bad], False)
        raise error or next(iter(survey.skipped.values()))
    if not files:
        raise GptcliError(
            f"no training text is left in {name}: every file of it is also in the validation text",
            "name another text with data.source or data.val_source",
        )
    for why, left_out in survey.left_out.items():
        survey.notes.append(f"left out {_names(left_out)}: {why}")
    if survey.converted:
        survey.notes.append(f"read as {data.encoding}: {_names(survey.converted)}")
    if survey.plain:
        survey.notes.append(
            f"read as plain text: {_names(survey.plain)}; data.field=NAME selects the field or "
            "column that holds the text"
        )
    return Source(name, tuple(files), tuple(survey.notes), counts=tuple(counts))


def _path_of_text(source: str, field: str | None, notes: list[str]) -> Path:
    """The path that data.source names: a shipped text, a file, a folder or standard input.

    Raises GptcliError if there is none."""
    shipped = shipped_texts()
    if source in shipped:
        if Path(source).exists():
            notes.append(
                f"`{source}` is the shipped text; write .{os.sep}{source} for the "
                "file or folder with that name"
            )
        return shipped[source]
    if source == STDIN:
        return standard_input(field)
    path = path_of(source)
    if source and exists(path):
        return path
    raise no_such_text(source)


def no_such_text(source: str) -> GptcliError:
    """The error for a name that is not the name of a shipped text, a file or a folder."""
    shipped = list(shipped_texts())
    choices = f"the shipped texts are: {', '.join(shipped)}" if shipped else "no text is shipped"
    if not source:
        return GptcliError("the name of the text is empty", choices)
    is_path = set("./\\\r") & set(source) and " " not in source and len(source) < 256
    if is_path and any(character < " " for character in source):
        return GptcliError(  # for example `"texts\new.txt"` in a config
            f"no shipped text, file or folder is named {source!r}",
            "in double quotes YAML reads \\n as a newline and \\t as a tab: write the path in "
            "single quotes, or with /",
        )
    if "\n" in source or len(source) > _LONGEST_NAME:
        begins = shown(" ".join(source[:40].split()))
        return GptcliError(
            f"`{begins}...` ({len(source):,} characters) is not the name of a file: it looks like "
            "a text itself",
            "save the text in a file and name the file, or pass it on: gptcli train - < FILE",
        )
    path = path_of(source)
    message = f"no shipped text, file or folder is named `{shown(source)}`"
    try:
        neighbours = [entry.name for entry in path.parent.iterdir()]
    except (OSError, ValueError):
        return GptcliError(f"{message}: there is no folder {shown(path.parent)}", choices)
    found = nearest(source, shipped)
    if found is None and (name := nearest(path.name, neighbours)):
        found = shown(path.with_name(name))
    if found is not None:
        return GptcliError(message, f"did you mean `{found}`?")
    if source.count(" ") > 3:
        return GptcliError(
            message, "to train on this text itself, save it in a file and name the file"
        )
    return GptcliError(message, f"{choices}; or give the path of a text, a folder or a .jsonl")


_LONGEST_NAME = 1000  # in characters; a longer word is a text, and not the name of a file


def _survey_file(path: Path, progress: Progress, survey: _Survey) -> list[SourceFile]:
    """A list with the file and its hash; [] if data.skip_undecodable leaves the file out."""
    with progress.phase("reading", _size(path)) as survey.advance:
        try:
            file = _surveyed(path, survey)
        except (BinaryFileError, UndecodableError) as error:
            if survey.data.skip_undecodable:
                survey.skipped[path] = error
                survey.left_out.setdefault(_not_text(survey.data), []).append(shown(path))
                return []
            if isinstance(error, BinaryFileError):
                raise
            raise (undecodable_files([(path, survey.data.encoding)], False) or error) from error
    if file.signature[0] == 0:
        raise GptcliError(f"{shown(path)} is empty", "give a file with text in it")
    return [file]


def _not_text(data: DataConfig) -> str:
    return f"not text in {data.encoding or 'UTF-8'}"


def _survey_folder(folder: Path, progress: Progress, survey: _Survey) -> list[SourceFile]:
    if _is_run(folder, _names_in(folder)):
        raise GptcliError(
            f"{shown(folder)} is a run folder, not a text",
            "continue the run with --resume --out, or start from its weights with --from",
        )
    paths = _files_below(folder, survey)
    for path in [path for path in paths if is_editor_backup(path.name)]:
        name = shown(path.relative_to(folder).as_posix())
        survey.left_out.setdefault("backups of an editor", []).append(name)
        paths.remove(path)
    files: list[SourceFile] = []
    binary: list[str] = []
    with progress.phase("reading", sum(map(_size, paths))) as survey.advance:
        for path in paths:
            name = shown(path.relative_to(folder).as_posix())
            try:
                files.append(_surveyed(path, survey))
            except BinaryFileError as error:
                binary.append(f"{name} (UTF-16)" if "is UTF-16" in error.message else name)
            except NoSuchFieldError:
                why = f"no field `{survey.data.field}`"
                survey.left_out.setdefault(why, []).append(name)
            except UndecodableError:
                survey.left_out.setdefault(_not_text(survey.data), []).append(name)
    if binary:
        more = f" and {len(binary) - 3} more" if len(binary) > 3 else ""
        what = f"{counted(len(binary), 'file')} that {agreeing(len(binary), 'is', 'are')}"
        names = ", ".join(binary[:3])
        survey.notes.append(f"skipped {what} not text, in {shown(folder)}: {names}{more}")
    if not any(file.signature[0] for file in files):
        message = f"no text in the folder {shown(folder)}: {_why_no_text(len(paths))}"
        left_out = "; ".join(f"{_names(n)}: {why}" for why, n in survey.left_out.items())
        hint = "put text files (UTF-8) or .jsonl files into it"
        raise GptcliError(f"{message}; left out: {left_out}" if left_out else message, hint)
    return files


def _why_no_text(files: int) -> str:
    if files == 0:
        return "it has no files, except hidden or left-out ones"
    its = "its only file is" if files == 1 else f"its {files} files are"
    return f"{its} binary, empty or left out"


def _files_below(folder: Path, survey: _Survey) -> list[Path]:
    """The files in a folder and its subfolders.

    Hidden files are left out, and so are subfolders that are hidden, links, run folders or
    caches."""
    found: list[Path] = []
    caches = {os.path.realpath(cache_folder())}

    def refuse(error: OSError, what: str = "the folder ") -> None:
        raise GptcliError(
            f"cannot read {what}{shown(error.filename)}: {error.strerror}",
            "check that you can read it",
        ) from error

    def leave_out(path: Path, why: str) -> None:
        survey.left_out.setdefault(why, []).append(shown(path))

    for place, folders, names in os.walk(folder, onerror=refuse):
        inside = [Path(place, name) for name in sorted(folders)]
        folders[:] = []
        for path in inside:
            if path.name.startswith("."):
                leave_out(path, "hidden")
            elif path.is_symlink():
                leave_out(path, "a link to a folder; name it as another text to include it")
            elif os.path.realpath(path) in caches or _is_cache(path):
                leave_out(path, "a cache of gptcli")
            elif _is_run(path, _names_in(path)):
                leave_out(path, "a run folder")
            else:
                folders.append(path.name)
        files = [Path(place, name) for name in names if not name.startswith(".")]
        try:
            found += [path for path in files if path.is_file()]
        except OSError as error:  # a link leads into a folder that cannot be read
            refuse(error, "")
    return sorted(found, key=lambda path: _order(path.relative_to(folder)))


def _names_in(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)  # noqa: PTH208
    except OSError:
        return []  # os.walk reports the error later


def _is_run(folder: Path, names: Iterable[str]) -> bool:
    """Whether a folder with the files `names` is a run folder, perhaps of a run that was killed."""
    held = set(names)
    files = {"tokenizer.json", "metrics.jsonl", "run.json"}
    return {"config.yaml", "tokenizer.json"} <= held or (".lock" in held and bool(held & files))


def _is_cache(folder: Path) -> bool:
    """Whether a folder is a cache of gptcli: it has encoded texts in folders named by hashes."""
    texts = folder / "corpus"
    hexadecimal = set("0123456789abcdef")
    return texts.is_dir() and any(
        len(name) == 64 and set(name) <= hexadecimal for name in _names_in(texts)
    )


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # the file was deleted in the meantime, so opening it raises an error later
        return 0


def _order(path: Path) -> list[str]:
    # On macOS, names can be decomposed (NFD). On Windows, paths are compared without regard to
    # case.
    return [unicodedata.normalize("NFC", part) for part in path.parts]


def _names(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _surveyed(path: Path, survey: _Survey) -> SourceFile:
    """A file with its hash and its format.

    Raises BinaryFileError, UndecodableError or NoSuchFieldError if the file cannot be used as a
    text."""
    data = survey.data
    opaque = (data.documents != "file" and named_kind(path) == "parquet") or compressed(path)
    wide = data.encoding is not None and codec_name(data.encoding).startswith(WIDE)
    file, marked = _hashed(path, survey.advance, binary=opaque or wide)
    if named_kind(path) == "parquet" and opaque and not compressed(path):
        return SourceFile(*file, Format("parquet", _field(data), marked=True))
    encoding = None
    if data.encoding is not None and not _is_utf8(path):
        encoding = data.encoding
    if data.skip_undecodable and (problem := first_problem(path, encoding)) is not None:
        raise problem
    if encoding is not None:
        survey.converted.append(shown(path))
    if wide and encoding is None:
        with open_content(path) as content:
            refuse_binary(path, content.stream.read(CHUNK), 0)
    if compressed(path):
        with open_content(path, encoding) as content:
            content.stream.read(1)  # raises BinaryFileError if it is binary after decompression
    chosen, why = choose_format(
        path, data.documents, data.field, marked or encoding is not None or opaque, encoding
    )
    if why is None and chosen.kind == "text" and data.field and is_standard_input(path):
        why = f"it is not JSON and has no column `{data.field}`"
    if why is not None:
        survey.plain.append(f"{shown(path)} ({why})")
    return SourceFile(*file, chosen)


def _field(data: DataConfig) -> str | None:
    return None if data.field == "text" else data.field


def _is_utf8(path: Path) -> bool:
    """Whether a file is UTF-8, complete or cut off. Such a file is not read in data.encoding."""
    try:
        problem = first_problem(path, None)
        return problem is None or is_cut_off(path, problem)
    except BinaryFileError:
        return False


def _hashed(
    path: Path, advance: Advance, binary: bool
) -> tuple[tuple[Path, tuple[int, int], str], bool]:
    """Path, signature and SHA-256 of a file, and whether `|endoftext|` is in it.

    Raises BinaryFileError if the file looks binary, unless `binary` is true. Raises GptcliError if
    the file is a git-lfs pointer."""
    digest = hashlib.sha256()
    offset = 0
    marked = False
    end = b""  # the end of the previous chunk, because _MARK can begin in it
    with open_bytes(path) as file:
        before = signature(file)
        while chunk := file.read(CHUNK):
            if not binary:
                refuse_binary(path, chunk, offset)
            if offset == 0 and is_lfs_pointer(chunk):
                raise GptcliError(
                    f"{shown(path)} is a git-lfs pointer, not the text itself", POINTER_HINT
                )
            digest.update(chunk)
            if not marked:
                bar = (end + chunk).find(b"|") if end else chunk.find(b"|")
                marked = bar >= 0 and _MARK in end + chunk
                end = chunk[1 - len(_MARK) :]
            offset += len(chunk)
            advance(len(chunk))
    # The signature was read before the hashing. If the file has changed since then,
    # `SourceFile.pieces` finds another signature, and refuses the file.
    return (path, before, digest.hexdigest()), marked
