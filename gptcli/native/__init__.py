"""A CPU's way to train in bfloat16: the passes and the optimizers in C, built where they run.

What they compute is what gptcli.model says, and they are tested against it. Where they cannot be
had (no C compiler, another kind of processor), PyTorch does all of it.
"""
