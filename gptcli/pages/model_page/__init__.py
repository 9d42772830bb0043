"""`gptcli page`: puts a model into one HTML file that generates text and shows the computation."""
