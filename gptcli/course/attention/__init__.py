"""The lesson on attention: its checks, its bank of mistakes, and the diagnosis of wrong files."""
