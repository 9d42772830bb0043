"""The model: attention, layers, GPT."""
