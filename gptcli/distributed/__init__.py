"""Training in several processes (ranks): which rank decides and writes, how gradients are averaged.

Rank 0 leads. It runs the same training loop as a single process, gptcli.training.loop, which does
not know about ranks. The loop gets special objects: passes that share the work, an optimizer that
tells the other ranks about each update, and with FSDP also weights that gather the shards. The
other ranks follow: they wait for the leader's next order (`orders.py`) and carry it out. So only
one rank decides and prints, and the other ranks cannot disagree. Rank 0 also writes all files.
There is one exception: with FSDP, each rank writes its own shard of a checkpoint, if all ranks see
the run folder.

Start with `orders.py`, then `passes.py`. gptcli.training never imports this package.
"""
