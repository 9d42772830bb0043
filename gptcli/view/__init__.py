"""What people look at. Knows events and files, never the loop."""
