"""`python -m gptcli`, for where the script is not on the path."""

from gptcli.cli import main

if __name__ == "__main__":
    main()
