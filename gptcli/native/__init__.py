"""C libraries compiled on this machine: bfloat16 training on x86-64; sampling on Linux CPUs.

Sampling computes in float32, bfloat16 or int8. gptcli.model defines what the libraries compute, and
tests compare the two. If a library cannot be compiled or the processor does not support it, PyTorch
computes everything. README.md explains the C code.
"""
