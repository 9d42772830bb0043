"""Trains and samples on CPUs with C libraries that are compiled on this machine.

Training computes in float32 or bfloat16, sampling in float32, bfloat16 or int8. gptcli.model
defines what the libraries compute. Tests compare the results of gptcli.model and of the libraries.
If a library cannot be compiled, or if the processor does not support it, PyTorch computes instead.
README.md explains the C code.
"""
