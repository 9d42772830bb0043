"""Known mistakes in attention, one file for each step or two; bank.py lists the files."""
