"""The entry point of the script `gptcli` and of `python -m gptcli`."""

from gptcli.interrupts import leave_imports_at_once


def main() -> None:
    """Run the command line. Ctrl-C leaves no traceback, even during the first import."""
    leave_imports_at_once()
    from gptcli import cli

    cli.main()


if __name__ == "__main__":
    main()
