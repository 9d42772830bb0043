"""Joins the shards of a run's newest and best weights into model.safetensors when the run ends.

gptcli reads shards and whole files, but other programs read only model.safetensors. The shards of
the optimizer's state stay, because only a resumed run reads them.

First gptcli writes model.safetensors. Then it writes a meta.json that names model.safetensors
instead of the shards. Last, it deletes the shards. So the checkpoint is complete at every moment.

First reading: skip this file.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from gptcli.errors import GptcliError
from gptcli.files import durable
from gptcli.training import checkpoint
from gptcli.training.checkpoint_files import write_tensors
from gptcli.training.meta_file import PARTS, dump_meta, is_shard, names_of

_WEIGHTS = PARTS[0]


def gather_weights(run: Path) -> list[str]:
    """Gather the weights of the newest and the best checkpoint; return warnings.

    Needs memory for all weights. The caller must hold the folder's lock."""
    warnings = []
    steps = checkpoint.steps_of(run)
    best, _ = checkpoint.find_best_step(run)
    for step in sorted({*steps[-1:], *({best} if best is not None else ())}):
        try:
            _gather(run, step)
        except (GptcliError, OSError, MemoryError) as error:
            warnings.append(
                f"WARNING: the weights of step {step} stay in shards, because they could not be "
                f"gathered ({error or type(error).__name__}). gptcli also reads shards"
            )
    return warnings


def _gather(run: Path, step: int) -> None:
    """Write model.safetensors in place of the shards of one checkpoint, if it has shards."""
    folder, name = checkpoint.folder_of(run, step), f"{_WEIGHTS}.safetensors"
    meta = checkpoint.read_meta(run, step)
    if folder.is_symlink():  # gptcli writes nothing into a folder that is a link
        return
    if name not in meta["files"]:
        shards = names_of(meta["files"], _WEIGHTS)
        temporary = durable.temporary_path(folder / name)
        try:
            file = write_tensors(temporary, checkpoint.load(run, step).model)
            durable.disk.rename(temporary, folder / name)
        except BaseException:
            durable.remove_tree(temporary)
            raise
        durable.fsync_folder(folder)
        files = {key: value for key, value in meta["files"].items() if key not in shards}
        durable.write_atomically(folder / "meta.json", dump_meta(step, meta, {name: file, **files}))
    for path in folder.iterdir():  # also delete shards that a killed process left
        if is_shard(path.name, _WEIGHTS):
            with suppress(OSError):
                durable.disk.unlink(path)
