"""The lessons besides attention: norms, MLP, block, tokenizer, training, sampling, cache, modern.

Each lesson has its steps, its known mistakes and a reference. Importing this package does not
import torch.
"""
