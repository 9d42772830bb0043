"""Writes docs/reference/dependencies.md: the size of each package that gptcli needs to run.

    python docs/dependency_sizes.py

The program measures the packages in the environment of its Python: the files of each package,
without the .pyc files that Python adds. Sizes differ between versions and systems, so the page
names the versions and the system that were measured. tests/docs compares the packages of the page
with pyproject.toml, but not their sizes.
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

gptcli needs only these packages to run. The last column lists what each package needs itself. A
package that several others need counts only once.

"""


def needs(found: Distribution) -> Iterator[str]:
    """Yield the name of each package that `found` needs on this system, without its extras."""
    for text in found.requires or []:
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            yield canonicalize_name(requirement.name)


def size(found: Distribution) -> int:
    """The number of bytes of a package's files, without .pyc files."""
    files = (Path(str(found.locate_file(path))) for path in found.files or [])
    return sum(path.stat().st_size for path in files
               if path.suffix != ".pyc" and path.is_file())  # fmt: skip


def installed(name: str) -> Distribution | None:
    """An installed package by its name, or None if it is not installed."""
    try:
        return distribution(name)
    except PackageNotFoundError:
        return None


def closure(name: str, known: set[str]) -> list[Distribution]:
    """The package `name` and all packages that it needs, directly or not, if they are installed.

    Leaves out the packages in `known`, and adds the names of the returned packages to `known`."""
    found = installed(name)
    if found is None or name in known:
        return []
    known.add(name)
    rest = [each for needed in needs(found) for each in closure(needed, known)]
    return [found, *rest]


def megabytes(count: int) -> str:
    """A number of bytes as text in megabytes, such as 0.04 MB, 1.4 MB or 512 MB."""
    value = count / 1e6
    digits = 2 if value < 0.1 else 1 if value < 10 else 0
    return f"{value:,.{digits}f} MB"


def page() -> str:
    """The Markdown of the page, with sizes that are measured now."""
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
        + "| package | version | size | packages that it needs |\n|---|---|---|---|\n"
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
