"""Known mistakes in attention. Each file has those of one or two steps; bank.py lists the files."""
