"""Describes, in one line, the machine that runs a benchmark."""

from __future__ import annotations

import datetime
import os
import platform
import re
import sys
from contextlib import suppress
from pathlib import Path


def header() -> str:
    """A line with the date, the machine, the versions and the command."""
    import torch

    cpu = platform.processor() or platform.machine()
    with suppress(OSError):
        found = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text("utf-8"), re.M)
        cpu = found[1] if found else cpu
    words = [f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]
    return (
        f"{datetime.date.today()}, {platform.system()} {cpu}, {os.cpu_count()} cores, Python "
        f"{platform.python_version()}, torch {torch.__version__}; `python {' '.join(words)}`"
    )
