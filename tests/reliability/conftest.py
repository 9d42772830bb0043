"""Makes the helper modules of this folder importable, and trains the small run."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def small_run(tmp_path_factory: pytest.TempPathFactory, text_file: Path) -> Path:
    """A run with three checkpoints; the best is not the newest."""
    import damage

    return damage.train_small_run(tmp_path_factory.mktemp("damage") / "run", text_file)
