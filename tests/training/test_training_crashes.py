"""A power cut at any moment of a save: whatever of what was not synced is lost, the checkpoint is
old or new."""

from __future__ import annotations

from pathlib import Path

import pytest
from disk_fault_trials import crashed_after_any_operation
from faulty_disks import STORIES, Story, names


@pytest.mark.parametrize("story", STORIES, ids=names(STORIES))
def test_a_crash_after_any_operation(story: Story, tmp_path: Path) -> None:
    """Also: what a call that has returned has saved is there after a crash."""
    crashes = list(crashed_after_any_operation(story, tmp_path))
    assert sum(crashes) >= len(crashes) > len(story.calls)
