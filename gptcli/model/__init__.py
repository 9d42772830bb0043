"""The model: archs, parameters, attention, layers, GPT."""
