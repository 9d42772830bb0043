"""Shows runs and results in the terminal. Reads events, and never imports the training loop."""
