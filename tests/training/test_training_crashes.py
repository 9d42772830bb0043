"""A power cut at any moment of a save leaves the old checkpoint or the new one intact."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.training.disk_fault_trials import crashed_after_any_operation
from tests.training.faulty_disks import STORIES, Story, names


@pytest.mark.slow
@pytest.mark.parametrize("story", STORIES, ids=names(STORIES))
def test_a_crash_after_any_operation(story: Story, tmp_path: Path) -> None:
    """A crash never loses what a completed call has saved."""
    crashes = list(crashed_after_any_operation(story, tmp_path))
    assert sum(crashes) >= len(crashes) > len(story.calls)
