"""Training: the loop, the step, optimizers, schedule, checkpoints, resuming, time and memory."""
