"""Loggers write a run's metrics and samples into a table, or for TensorBoard, trackio or wandb."""
