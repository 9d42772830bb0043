"""Training in several processes (ranks): who decides, who writes, how gradients are combined.

Rank 0 leads. It runs the training loop of one process, gptcli.training.loop, which knows nothing of
ranks. Two things are injected: passes that share the work, and an optimizer that tells the others.
The other ranks follow: they wait for the leader's next order (`orders.py`) and carry it out. So one
rank decides everything, prints and writes, and the others cannot disagree.

Start with `orders.py`, then `passes.py`. gptcli.training never imports this package.
"""
