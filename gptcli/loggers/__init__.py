"""Loggers write metrics as a table, or metrics and samples for TensorBoard, trackio or wandb."""
