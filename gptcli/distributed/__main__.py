"""The entry point of each rank that `gptcli train --devices N` starts."""

import sys
from pathlib import Path

from gptcli.__main__ import main


def rank() -> None:
    """Run gptcli's command line in this rank, and end the process with the exit code."""
    if sys.stdin is not None and sys.stdin.isatty():  # only the launcher uses the terminal
        sys.stdin = Path("/dev/null").open(encoding="utf-8")  # noqa: SIM115
    main()


if __name__ == "__main__":
    rank()
