"""The entry point of the script `gptcli` and of `python -m gptcli`."""

import os

from gptcli.interrupts import leave_imports_at_once
from gptcli.terminal_variables import correct_terminal_variables


def main() -> None:
    """Run the command line. Ctrl-C leaves no traceback, even during the first import."""
    leave_imports_at_once()
    correct_terminal_variables(os.environ)
    from gptcli import cli

    cli.main()


if __name__ == "__main__":
    main()
