"""A power cut at any moment of a save: whatever of what was not synced is lost, the checkpoint is
old or new."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest
from bad_disks import STORIES, Recording, Story, Watched, names
from lost_writes import Model, write_tree

from gptcli import durable


@pytest.mark.parametrize("story", STORIES, ids=names(STORIES))
def test_a_crash_after_any_operation(
    story: Story, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also: what a call that has returned has saved is there after a crash."""
    run, crashed = tmp_path / "run", tmp_path / "crashed"
    monkeypatch.setattr(durable, "disk", Watched())
    model = Model(story.begin(run))
    disk = Recording()
    monkeypatch.setattr(durable, "disk", disk)
    returned: list[int] = []  # the number of operations at which each call returned
    story.tell(run, lambda: returned.append(len(disk.operations)))
    monkeypatch.setattr(durable, "disk", Watched())
    choice = random.Random(0)
    tried = 0
    checked = set()
    for count in range(len(disk.operations) + 1):
        if count:
            model.apply(disk.operations[count - 1])
        ended = sum(at <= count for at in returned)
        for tree in model.after_a_crash(choice):
            tried += 1
            if (tree, ended) in checked:
                continue
            checked.add((tree, ended))
            shutil.rmtree(crashed, ignore_errors=True)
            write_tree(tree, crashed)
            story.check(crashed, ended)
            story.go_on(crashed)
    print(f"{story.name}: {len(disk.operations)} operations, {tried} crashes, {len(checked)} trees")
    assert tried > len(checked) > len(story.calls)
