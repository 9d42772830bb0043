"""HTML pages that people open in a browser: each is one file and needs nothing from elsewhere."""
