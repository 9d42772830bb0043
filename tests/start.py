"""Replaces this process by `gptcli WORDS`, without buffers if the first word is -u."""

import os
import sys

words = sys.argv[1:]
flags = ["-u"] if words[:1] == ["-u"] else []
os.execv(sys.executable, [sys.executable, *flags, "-m", "gptcli", *words[len(flags) :]])
