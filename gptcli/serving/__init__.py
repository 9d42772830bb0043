"""Serves trained models over HTTP, with OpenAI's completions interface."""
