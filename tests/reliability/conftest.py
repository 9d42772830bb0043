"""Makes the modules beside the tests importable: in pytest's importlib mode they are not."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def small_run(tmp_path_factory: pytest.TempPathFactory, text_file: Path) -> Path:
    """A run with three checkpoints, the best of them not the newest."""
    import damage

    return damage.train_small_run(tmp_path_factory.mktemp("damage") / "run", text_file)
