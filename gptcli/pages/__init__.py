"""Makes HTML pages for a browser. Each page is one file, and requests nothing from elsewhere."""
