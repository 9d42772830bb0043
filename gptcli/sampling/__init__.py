"""Logits -> token, and the generation loop with its cache."""
