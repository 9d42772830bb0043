"""The lessons besides attention: layer norm, MLP, block, tokenizer, training and sampling.

Each has its steps, its known mistakes and a reference. Importing this package imports no torch.
"""
