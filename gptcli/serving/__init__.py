"""Serves trained models over HTTP: OpenAI's completions interface over the streams of sampling/."""
