"""Writes the tables of files in CONTRIBUTING.md, from the first paragraph of each file's docstring.

`make map` runs this program. With --check, it only exits with 1 if a table is out of date.
"""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
GUIDE = ROOT / "CONTRIBUTING.md"
BEGIN, END = "<!-- file map: made by `make map` -->", "<!-- end of the file map -->"

# The folders of gptcli/ in the order of the map, which is roughly the order in which a text passes
# through them. A folder that is not in this list comes last.
ORDER = (
    "gptcli", "gptcli/cli", "gptcli/serving",
    "gptcli/api", "gptcli/files", "gptcli/tokenization", "gptcli/corpus",
    "gptcli/model", "gptcli/training", "gptcli/sampling", "gptcli/native", "gptcli/course",
    "gptcli/loggers",
    "gptcli/view", "gptcli/interop", "gptcli/pages",
)  # fmt: skip

# The descriptions of the folders with C and JavaScript. The __init__.py of a Python package has its
# own description.
FOLDERS = {
    "gptcli/native/sample": "The C library for sampling",
    "gptcli/native/train": "The C libraries for training",
    "gptcli/native/vectors": "Vectors of sixteen numbers; matrix products, computed tile by tile",
    "gptcli/pages/model_page/runtime": "The network, its tokenizer and its sampler in JavaScript",
    "gptcli/pages/model_page/view": "What a page of a model shows, and what its controls do",
    "gptcli/pages/third_party": "Code of others, unchanged; PROVENANCE.md says where it comes from",
}


def summary(path: Path) -> str:
    """The first paragraph of a Python file's docstring, or of the first comment of another file."""
    text = path.read_text("utf-8")
    if path.suffix == ".py":
        doc = ast.get_docstring(ast.parse(text)) or ""
    else:
        found = re.match(r"/\*(.*?)\*/", text, re.DOTALL)
        doc = re.sub(r"^ ?\* ?", "", found.group(1), flags=re.MULTILINE) if found else ""
        if text.startswith("//"):
            doc = re.sub(r"^// ?", "", text.partition("\n\n")[0], flags=re.MULTILINE)
    first = doc.strip().partition("\n\n")[0]
    return " ".join(first.split()).removesuffix(".")


def files(folder: Path) -> list[Path]:
    """The Python, C and JavaScript files of a folder, without __init__.py, sorted by name."""
    found = (p for p in folder.iterdir() if p.suffix in (".py", ".c", ".h", ".js"))
    return sorted(p for p in found if p.name != "__init__.py")


def folders() -> list[Path]:
    """Every folder of gptcli/ that holds source files, in the order of the map."""
    found = {
        p.parent for p in (ROOT / "gptcli").rglob("*") if p.suffix in (".py", ".c", ".h", ".js")
    }

    def place(folder: Path) -> tuple[int, str]:
        name = folder.relative_to(ROOT).as_posix()
        package = "/".join(name.split("/")[:2])
        return (ORDER.index(package) if package in ORDER else len(ORDER), name)

    return sorted((f for f in found if files(f)), key=place)


def table() -> str:
    """The whole map as Markdown: a heading and a table for each folder."""
    parts = []
    for folder in folders():
        name = folder.relative_to(ROOT).as_posix()
        init = folder / "__init__.py"
        about = summary(init) if init.exists() else FOLDERS.get(name, "")
        rows = "\n".join(
            f"| `{p.name}` | {summary(p).replace('|', chr(92) + '|')} |" for p in files(folder)
        )
        described = f"{about}.\n\n" if about else ""
        parts.append(f"### {name}/\n\n{described}| file | |\n|---|---|\n{rows}\n")
    return "\n".join(parts)


def with_table(guide: str) -> str:
    """The text of CONTRIBUTING.md with a new file map. Raises ValueError if the markers are
    missing."""
    before, _, rest = guide.partition(BEGIN)
    _, _, after = rest.partition(END)
    if not rest or END not in rest:
        raise ValueError(f"{GUIDE.name} lacks the lines {BEGIN} and {END}")
    return f"{before}{BEGIN}\n\n{table()}\n{END}{after}"


def main() -> None:
    """Write the file map into CONTRIBUTING.md.

    With --check, write nothing, and fail if the map is out of date."""
    guide = GUIDE.read_text("utf-8")
    wanted = with_table(guide)
    if "--check" in sys.argv[1:]:
        sys.exit(wanted != guide and "the file map is out of date; run: make map")
    GUIDE.write_text(wanted, "utf-8", newline="\n")


if __name__ == "__main__":
    main()
