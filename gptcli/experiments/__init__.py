"""Runs experiments with several runs: seeds, sweeps and scaling. Tests whether differences are
noise."""
