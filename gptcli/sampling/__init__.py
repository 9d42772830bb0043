"""Sampling: logits to the next token, the generation loop with its KV cache, tokens to text."""
