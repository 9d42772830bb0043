"""The course: what learners write, and the checker that tells them whether it is right.

Importing this package does not import torch; the checks themselves do.
"""

from gptcli.course.checking import check_builtin, check_file, check_files, load_attention

__all__ = ["check_file", "check_files", "check_builtin", "load_attention"]
