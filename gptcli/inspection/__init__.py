"""Looks inside a trained network: attention maps, kinds of heads, logit lens, eight steps."""
