"""Where the program begins: the script `gptcli`, and `python -m gptcli`."""

from gptcli.interrupts import leave_imports_at_once


def main() -> None:
    """Run the command line; from its first import on, Ctrl-C leaves in good form."""
    leave_imports_at_once()
    from gptcli import cli

    cli.main()


if __name__ == "__main__":
    main()
