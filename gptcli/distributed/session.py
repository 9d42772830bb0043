"""Runs one process of a run with several ranks: as the leader, or as a follower.

The command line of every rank is the same. Only rank 0, the leader, carries out the command. The
other ranks load the files of the user's parts that the command line names. The leader tells them
everything else.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextlib import redirect_stdout, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptcli.distributed.place import Place, leave_word, was_restarted, word_of
from gptcli.errors import GptcliError
from gptcli.plurals import counted

if TYPE_CHECKING:
    from gptcli.distributed.orders import LeaderState
    from gptcli.distributed.team import Team
    from gptcli.model.user_parts import UserParts
    from gptcli.training.loop import Setup


class Leader:
    """A context manager for rank 0. When rank 0 leaves it, the other ranks end, too.

    They end with rank 0's exit code. But if a rank is gone, or if rank 0 fails while it carries out
    an order, they notice the closed connection, and end with the exit code of a LostError."""

    def __init__(self, place: Place) -> None:
        from gptcli.distributed.team import Team

        self._place = place
        use_own_gpu(place)
        self._team: Team = Team(place)
        self._state: LeaderState | None = None

    def lead(self, setup: Setup) -> Setup:
        """`setup`, changed so that all ranks train together. Raises GptcliError if they cannot."""
        from gptcli.distributed.orders import LeaderState, folder_mark
        from gptcli.distributed.share import Share

        Share.of(setup.config.train, self._place.size)
        if setup.config.run.parallel == "fsdp" and setup.compile:
            raise GptcliError(
                "run.parallel: fsdp does not work with run.compile", "set run.compile=false"
            )
        run = str(setup.run.absolute())
        words = {
            "run": run,
            "mark": folder_mark(setup.run),
            "config": setup.config.model_dump(),
            "content_key": setup.corpus.content_key,
            "device": setup.device.type,
        }
        leave_word("run", run)

        def new_state(*args: Any, **more: Any) -> LeaderState:
            self._state = LeaderState(self._team, setup.config, setup.corpus, words, *args, **more)
            return self._state

        return replace(setup, new_state=new_state)

    def asked_to_stop(self) -> bool:
        """Whether any rank was asked to stop, as far as `Team.agree` has noticed."""
        return self._team.stop_seen

    def __enter__(self) -> Leader:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        from gptcli.distributed.team import LostError

        state = self._state
        if isinstance(error, LostError) or (state is not None and state.is_busy):
            self._team.watch.end()
            return  # the other ranks notice the closed connection
        code = exit_code(error)
        leave_word("ended", str(code))
        with suppress(LostError):
            if state is not None and state.has_begun():
                state.dismiss(code)
            else:
                self._team.announce({"end": code})
        self._team.leave()


def follow_leader(place: Place, load_parts: Callable[[], UserParts | None]) -> int:
    """Take part in the leader's training, and return the exit code that the leader names.

    `load_parts` loads the user's parts from the files that the command line names."""
    asked: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda number, frame: asked.append(number))
    from gptcli.distributed.team import Team

    use_own_gpu(place)
    team = Team(place)
    team.wants_stop = lambda: bool(asked)
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):
        words = team.await_announcement()
        code = int(words["end"]) if "end" in words else _take_part(team, words, load_parts)
    team.leave()
    return code


def _take_part(
    team: Team, words: dict[str, Any], load_parts: Callable[[], UserParts | None]
) -> int:
    import torch

    from gptcli.config import Config
    from gptcli.devices import choose_device, choose_dtype, choose_threads
    from gptcli.distributed.fsdp import ShardedWeights
    from gptcli.distributed.orders import follow, starting_tensors
    from gptcli.training.opening_text import open_text
    from gptcli.training.run_folder import read_tokenizer
    from gptcli.training.training_state import TrainingState

    team.connect(words["device"])
    config = Config.model_validate(words["config"])
    parts = load_parts()
    tokenizer = read_tokenizer(Path(words["run"]), parts.tokenizer if parts is not None else None)
    corpus = open_text(config, tokenizer, content_key=words["content_key"])
    device = choose_device(config.run.device)
    sharded = config.run.parallel == "fsdp"
    state = TrainingState(
        config.model,
        config.train,
        tokenizer.vocab_size,
        dtype=torch.float32 if sharded else choose_dtype(config.run.dtype, device),
        device=device,
        user_parts=parts,
        threads=choose_threads(config.run.threads),
        compiled=config.run.compile is True,
    )
    if sharded:
        state.weights = ShardedWeights(state.model)
    by_name = state.weights.named()
    slots: dict[str, torch.Tensor] = {}
    for name, shape in words["slots"].items():
        like = by_name[name.partition("/")[2]]
        slots[name] = torch.zeros(shape, dtype=torch.float32, device=like.device)
    state.optimizers.load_state(slots)
    team.share(starting_tensors(state))
    state.weights.publish()
    state.model.train()
    return follow(team, state, config, corpus, words)


def use_own_gpu(place: Place) -> None:
    """Let `cuda` mean this rank's GPU. Raises GptcliError if the machine has GPUs, but too few."""
    import torch

    if torch.cuda.is_available():
        count = torch.cuda.device_count()
        if place.local_rank >= count:
            raise GptcliError(
                f"{counted(place.local_size, 'process', 'processes')} on this machine, but it has "
                f"{counted(count, 'GPU')}",
                f"start at most {count}, or set run.device=cpu",
            )
        torch.cuda.set_device(place.local_rank)


def exit_code(error: BaseException | None) -> int:
    """The exit code of a command that ends with `error`, as in gptcli.cli; 0 if it is None."""
    if error is None:
        return 0
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    if isinstance(error, KeyboardInterrupt):
        return 130
    return error.exit_code if isinstance(error, GptcliError) else 1


def run_to_continue(out: Path | None) -> Path | None:
    """The run to resume after a rank died and all ranks were restarted.

    This is the run that the leader noted before the restart. If there is no note, it is `out`, the
    folder that the command line names. Returns None at the first start, and for a run that has no
    config.yaml yet."""
    if not was_restarted():
        return None
    known = word_of("run")
    found = Path(known) if known is not None else out
    return found if found is not None and (found / "config.yaml").is_file() else None
