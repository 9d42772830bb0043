"""`gptcli page`: a model in one HTML file that writes text and shows what the network computes."""
