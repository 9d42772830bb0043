"""Experiments that train and compare several runs: seeds, sweeps and scaling. Decides whether a
difference is more than noise."""
