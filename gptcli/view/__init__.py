"""What the terminal shows. This package reads events and never imports the training loop."""
