"""The lessons besides attention: norms, MLP, block, tokenizer, training, sampling, cache, and the
parts of modern GPTs.

Each lesson has its steps, its known mistakes and a reference. Importing this package does not
import torch.
"""
