"""Trains and compares several runs (seeds, sweeps, scaling), and tells differences from noise."""
