"""HTML pages that people open in a browser: each is one file, and requests nothing."""
