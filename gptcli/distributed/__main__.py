"""The entry point of a rank that `gptcli train --devices N` starts."""

import sys
from pathlib import Path

from gptcli.__main__ import main


def rank() -> None:
    """Run the command line as a rank."""
    if sys.stdin is not None and sys.stdin.isatty():  # the terminal belongs to the launcher
        sys.stdin = Path("/dev/null").open(encoding="utf-8")  # noqa: SIM115
    main()


if __name__ == "__main__":
    rank()
