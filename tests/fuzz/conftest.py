"""Makes the modules beside the tests importable: in pytest's importlib mode they are not."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
