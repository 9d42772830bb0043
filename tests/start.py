"""start.py [-u] WORDS: replaces its process by `gptcli WORDS`. With -u, streams have no buffers."""

import os
import sys

words = sys.argv[1:]
flags = ["-u"] if words[:1] == ["-u"] else []
os.execv(sys.executable, [sys.executable, *flags, "-m", "gptcli", *words[len(flags) :]])
