"""The entry point of a rank that `gptcli train --devices N` starts.

A rank whose training ended in order exits with 0, whatever the exit code of the command is: the
agent of torch.distributed.run would take another code for a failure, and start all ranks again.
The leader has left the exit code for the launcher.
"""

import sys
from pathlib import Path

from gptcli.__main__ import main
from gptcli.distributed.place import word_of


def rank() -> None:
    """Run the command line as a rank."""
    if sys.stdin is not None and sys.stdin.isatty():  # the terminal belongs to the launcher
        sys.stdin = Path("/dev/null").open(encoding="utf-8")  # noqa: SIM115
    try:
        main()
    except SystemExit as ended:
        sys.exit(0 if word_of("ended") is not None else ended.code)


if __name__ == "__main__":
    rank()
