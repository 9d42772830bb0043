"""The parts that learners write, week by week, each with its steps, mistakes and reference.

Importing this package does not import torch; `examination`, which runs in the worker, does.
"""
