"""The course: exercises that learners write, and the checker that finds their first mistake.

Importing this package does not import torch. The checks import torch in a worker process.
"""

from gptcli.course.checking import check_builtin, check_file, check_files, load_attention
from gptcli.course.verdict import Verdict, check

__all__ = ["check", "Verdict", "check_file", "check_files", "check_builtin", "load_attention"]
