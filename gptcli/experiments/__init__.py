"""Experiments of several runs: seeds, sweeps and scaling, and whether differences are noise."""
