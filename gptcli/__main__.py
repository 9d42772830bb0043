"""The entry point of the script `gptcli` and of `python -m gptcli`."""

import os

from gptcli.interrupts import leave_imports_at_once
from gptcli.terminal_variables import correct_terminal_variables


def main() -> None:
    """Run the command line. Ctrl-C leaves no traceback, even during the first import."""
    leave_imports_at_once()
    correct_terminal_variables(os.environ)
    from gptcli import cli

    try:
        cli.main()
    except SystemExit as ended:
        if "RANK" in os.environ:  # torchrun sets it
            from gptcli.distributed.ending import end_rank
            from gptcli.distributed.place import place

            if place() is not None:
                end_rank(ended)
        raise


if __name__ == "__main__":
    main()
