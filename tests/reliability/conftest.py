from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import Once


@pytest.fixture(scope="session")
def small_run(once: Once, text_file: Path) -> Path:
    """A run with three checkpoints. The best of them is not the newest."""
    from tests.reliability import damage

    return (
        once("small-run", lambda folder: damage.train_small_run(folder / "run", text_file)) / "run"
    )
