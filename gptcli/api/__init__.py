"""Prepares runs and loads models, for the command line and for `import gptcli`.

`model.py` and `training.py` hold the public functions of the library (see docs/library.md). The
other files serve the library and the command line. Nothing here handles signals or ends the
process. Only the view of `gptcli.train(progress=True)` prints.
"""
