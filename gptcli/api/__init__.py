"""From what a user asks for to a run or a model: the command line and `import gptcli` share it.

`model.py` and `training.py` are the face of the library (see docs/library.md). The other files
prepare runs and load models for both. Nothing here prints, handles signals or ends the process.
"""
