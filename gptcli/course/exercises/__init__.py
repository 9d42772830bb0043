"""The lessons besides attention: norms, MLP, block, tokenizer, training, sampling, cache, modern.

Each has its steps, its known mistakes and a reference. Importing this package imports no torch.
"""
