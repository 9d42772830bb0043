"""The lesson on attention: its checks, its known mistakes, and its diagnosis of wrong files.

Importing this package does not import torch.
"""

STEP_NAMES = {
    1: "queries, keys and values",
    2: "splitting into heads",
    3: "folding batch and heads",
    4: "scores and their scale",
    5: "causal mask",
    6: "softmax",
    7: "weighted sum of the values",
    8: "concatenation and projection",
}
