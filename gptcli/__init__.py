"""gptcli: train, sample and check tiny GPTs from the command line."""

__version__ = "0.1.0"
