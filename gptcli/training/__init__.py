"""The training loop and what it stands on: optimizers, schedule, checkpoints, estimates."""
