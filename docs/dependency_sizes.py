"""Writes docs/reference/dependencies.md: the size of each package that gptcli needs to run.

    python docs/dependency_sizes.py

It measures what is installed beside the Python that runs it: the files of each package, without the
compiled modules that Python adds. Other versions and systems have other sizes, so the page says
which these are. tests/docs compares its packages with pyproject.toml, not its sizes.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PAGE = Path(__file__).resolve().parent / "reference" / "dependencies.md"

BEFORE = """# What is installed

<!-- written by `python docs/dependency_sizes.py`; do not edit -->

These packages are all that gptcli needs to run: each with the packages that it needs itself. One
that several need is counted once.

"""


def needs(found: Distribution) -> Iterator[str]:
    """The names of the packages that a package needs here, without its extras."""
    for text in found.requires or []:
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            yield canonicalize_name(requirement.name)


def size(found: Distribution) -> int:
    """The bytes of a package's files, without __pycache__."""
    files = (Path(str(found.locate_file(path))) for path in found.files or [])
    return sum(path.stat().st_size for path in files
               if path.suffix != ".pyc" and path.is_file())  # fmt: skip


def installed(name: str) -> Distribution | None:
    """A package; None if it is not installed (a marker can name packages that are not needed)."""
    try:
        return distribution(name)
    except PackageNotFoundError:
        return None


def closure(name: str, known: set[str]) -> list[Distribution]:
    """A package and those that it needs and that are not known yet. Adds them to `known`."""
    found = installed(name)
    if found is None or name in known:
        return []
    known.add(name)
    rest = [each for needed in needs(found) for each in closure(needed, known)]
    return [found, *rest]


def megabytes(count: int) -> str:
    """A size for people: 0.04 MB, 1.4 MB, 512 MB."""
    value = count / 1e6
    digits = 2 if value < 0.1 else 1 if value < 10 else 0
    return f"{value:,.{digits}f} MB"


def page() -> str:
    """The page, measured now."""
    direct = list(needs(distribution("gptcli")))
    known: set[str] = set(direct)
    rows, total = [], 0
    for name in direct:
        found = distribution(name)
        others = [each for needed in needs(found) for each in closure(needed, known)]
        own, more = size(found), sum(map(size, others))
        total += own + more
        names = ", ".join(f"{each.name} {each.version}" for each in sorted(others, key=_name))
        shown = f"{megabytes(more)}: {names}" if names else ""
        cells = [found.name, found.version, megabytes(own), shown]
        rows.append((own + more, f"| {' | '.join(cells)} |"))
    rows.sort(reverse=True)
    where = f"Python {platform.python_version()}, {platform.system()} {platform.machine()}"
    build = "PyTorch's CPU build" if "+cpu" in distribution("torch").version else "PyTorch"
    return (
        BEFORE
        + "| package | version | size | and what it needs |\n|---|---|---|---|\n"
        + "\n".join(row for _, row in rows)
        + f"\n| all | | {megabytes(total)} | |\n\nMeasured on {where}, with {build}: "
        "`python docs/dependency_sizes.py`.\n"
        "With CUDA, PyTorch needs several gigabytes more: "
        "[without CUDA](../install.md#without-cuda).\n"
    )


def _name(found: Distribution) -> str:
    return canonicalize_name(found.name)


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8", newline="\n")
