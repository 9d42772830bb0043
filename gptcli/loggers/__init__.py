"""Loggers: a run's metrics.jsonl and samples.txt in a table, TensorBoard, trackio or wandb."""
