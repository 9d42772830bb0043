"""Chooses device, dtype, threads, compile and engine again for a run that another machine trained.

config.yaml holds the values that replaced `auto` when the run began. run.json records the machine,
and which keys of `run` were `auto`. On the same machine, values that still work do not change, so
a resumed run gets the same weights to the bit. On another machine, gptcli chooses new values for
the keys that were `auto`, and for keys whose values cannot work, or are slow, on that machine.
"""

from __future__ import annotations

from collections.abc import Callable, Set
from importlib.util import find_spec
from typing import Any

import torch

from gptcli.config import Config, RunConfig
from gptcli.config_files import ConfigError, in_words
from gptcli.container import usable_cores
from gptcli.devices import (
    choose_device,
    choose_dtype,
    choose_threads,
    has_quick_bfloat16,
)
from gptcli.errors import GptcliError
from gptcli.training.passes import choose_engine


def machine_record(
    run: RunConfig, before: object = None, asked: Set[str] = frozenset()
) -> dict[str, Any]:
    """What run.json records under the key `machine`.

    `run` is the config's section `run`, before `auto` is replaced. `before` is the previous record
    of a resumed run. The keys that `before` lists as `auto` stay `auto`, except the keys that
    the user set for this resume (`asked`).
    """
    chosen = {key for key, value in run.model_dump().items() if value == "auto"}
    if isinstance(before, dict) and isinstance(before.get("auto"), list):
        chosen |= {key for key in before["auto"] if key in RunConfig.model_fields} - asked
    return {**_this_machine(), "auto": sorted(chosen)}


def chosen_again(stored: RunConfig, record: object, asked: Set[str] = frozenset()) -> RunConfig:
    """The section `run` of a stored config, with `auto` for each key that needs a new value.

    `record` is the run's `machine_record`; None for a run of an old version. Keys in `asked` keep
    their values, because the user set them for this resume."""
    values = stored.model_dump()

    def again(*keys: str) -> None:
        values.update({key: "auto" for key in keys if key not in asked})

    here, then = _this_machine(), record if isinstance(record, dict) else {}
    is_known = all(key in then for key in here)
    moved = is_known and any(then[key] != here[key] for key in here)
    if moved:
        auto = then.get("auto")
        again(*(key for key in RunConfig.model_fields if isinstance(auto, list) and key in auto))
    if values["device"] != "auto" and not _has_device(values["device"]):
        again("device")
    if not _has_device(values["device"]):
        return RunConfig.model_validate(values)  # the user set the device: choose_device raises
    device = choose_device(values["device"])
    other_device = device.type != stored.device
    if other_device:
        again("compile", "engine")
    if stored.compile is True and device.type == "cuda" and find_spec("triton") is None:
        again("compile")
    too_slow = stored.dtype == "bfloat16" and not has_quick_bfloat16(device)
    if (stored.dtype == "float16" and device.type == "cpu") or (
        too_slow and (other_device or stored.engine == "native")
    ):
        again("dtype")
    if isinstance(stored.threads, int):
        most = 8 * here["cores"] if is_known and not moved else here["cores"]
        if stored.threads > most:
            again("threads")
    if stored.engine == "native":
        again("engine")
    return RunConfig.model_validate(values)


def changes_note(stored: RunConfig, now: RunConfig, asked: Set[str]) -> list[str]:
    """Which keys of `run` changed, as a list with one note; [] if none did.

    Keys in `asked`, and keys that were `auto`, do not count."""
    before, after = stored.model_dump(), now.model_dump()
    changed = [
        f"run.{key} is now {in_words(after[key])} (was {in_words(before[key])})"
        for key in before
        if before[key] != after[key] and key not in asked and before[key] != "auto"
    ]
    if not changed:
        return []
    return [
        f"chosen again for this machine: {', '.join(changed)}; numbers will round differently "
        "from now on"
    ]


def refuse_other_machine(config: Config, *, has_user_parts: bool = False) -> None:
    """Raise an error that names all problems if this machine cannot run the config."""
    run = config.run
    device = choose_device(run.device if _has_device(run.device) else "auto")
    dtype = torch.bfloat16 if run.dtype == "bfloat16" else torch.float32
    attempts: dict[str, Callable[[], object]] = {
        "device": lambda: choose_device(run.device),
        "dtype": lambda: choose_dtype(run.dtype, device),
        "threads": lambda: choose_threads(run.threads),
    }
    if run.engine == "native":
        attempts["engine"] = lambda: choose_engine(
            config, device, dtype, compiled=run.compile is True, has_user_parts=has_user_parts
        )
    problems: dict[str, str] = {}
    for key, attempt in attempts.items():
        try:
            attempt()
        except GptcliError as error:
            problems[key] = error.message
    if not problems:
        return
    keys = [*problems, *(["compile"] if "device" in problems and run.compile is True else [])]
    autos = " ".join(f"run.{key}=auto" for key in keys)
    hint = f"add {autos} to the command: gptcli then chooses for this machine"
    raise ConfigError([(problem, hint) for problem in problems.values()])


def _this_machine() -> dict[str, Any]:
    return {"device": choose_device("auto").type, "cores": usable_cores()}


def _has_device(name: str) -> bool:
    try:
        choose_device(name)
    except GptcliError:
        return False
    return True
