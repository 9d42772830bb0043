"""Looks inside a trained network: attention maps and their kinds, logit lens, eight steps."""
