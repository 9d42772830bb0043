"""The leader's orders, and what the other ranks do on each order. So all ranks do the same work.

    leader                                    every other rank
    ------                                    ----------------
    the ordinary training loop                wait for an order
      passes.gradients -> "gradients" ----->    compute its share, average
      optimizers.step  -> "update"    ----->    clip, update, publish
      passes.evaluate  -> "evaluate"  ----->    evaluate its share of the split
      weights.named    -> "gather ..." ---->    send its shards (FSDP only)
      state.files      -> "save"       ---->    write its shards to the disk (FSDP: shards.py)
    the end            -> "end"       ----->    leave with the same exit code

The loop calls the same methods as in a single process. On the leader, each method in this table
also sends its order to the other ranks. The loop also decides when to stop, when to halve the loss
scale, and whether the run diverged. These decisions need no order, because the other ranks only do
what the next order says. A save needs an order only with FSDP.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from gptcli.config import Config
from gptcli.corpus import Corpus, TokenStore
from gptcli.corpus.device_batches import DeviceBatches
from gptcli.devices import choose_dtype
from gptcli.distributed.fsdp import FsdpPasses, ShardedWeights, sharded_optimizers
from gptcli.distributed.orthogonalisation import share_orthogonalisation
from gptcli.distributed.passes import DdpPasses, RankBatches, RankPasses
from gptcli.distributed.shards import LeaderShards, ShardWriter
from gptcli.distributed.share import Share
from gptcli.distributed.team import Team
from gptcli.model.gpt import GPT
from gptcli.training.checkpoint_files import TensorFiles
from gptcli.training.optimizers import Optimizers
from gptcli.training.passes import TorchPasses
from gptcli.training.step import Batch, dropout_seed, first_loss_scale
from gptcli.training.training_state import TrainingState, build_model

Kind = Literal["gradients", "update", "evaluate", "gather weights", "gather state", "save", "end"]
_KINDS: tuple[Kind, ...] = get_args(Kind)
_NUMBERS = 4  # each order consists of four numbers: its kind, and three more


class Orders:
    """Sends the leader's orders, and receives them."""

    def __init__(self, team: Team) -> None:
        self._team = team

    def give(self, kind: Kind, first: float = 0.0, second: float = 0.0, third: float = 0.0) -> None:
        """Tell all other ranks what to do next."""
        numbers = [float(_KINDS.index(kind)), first, second, third]
        self._team.tell(torch.tensor(numbers, dtype=torch.float64))

    def receive(self) -> tuple[Kind, float, float, float]:
        """Wait for the leader's next order, and return its kind and its three numbers."""
        order = self._team.tell(torch.zeros(_NUMBERS, dtype=torch.float64))
        kind, first, second, third = order.tolist()
        return _KINDS[int(kind)], first, second, third


def shard_writer(team: Team, state: TrainingState, words: dict[str, Any]) -> ShardWriter | None:
    """The writer of this rank's shards; None if the leader writes the checkpoints alone.

    If the weights are not sharded, the leader writes alone. If a rank does not see the run folder,
    the leader gathers the weights and writes alone."""
    if not isinstance(state.weights, ShardedWeights):
        return None
    run = Path(words["run"])
    seen = team.agree(float(folder_mark(run) == words["mark"]))[0]
    if seen < team.place.size:
        return None
    optimizers = state.optimizers
    return ShardWriter(
        team.place, run / "checkpoints", state.weights, lambda: Optimizers.state(optimizers)
    )


def folder_mark(run: Path) -> list[int]:
    """Numbers that tell the folder `run` from a copy of it on another disk.

    [] if the config.yaml of `run` cannot be found."""
    try:
        found = (run / "config.yaml").stat()
    except OSError:
        return []
    return [found.st_ino, found.st_mtime_ns]


def rank_passes(
    team: Team, state: TrainingState, alone: TorchPasses, config: Config, corpus: Corpus
) -> RankPasses:
    """The passes of this rank. DDP takes the loss function of `alone`, which is for one process."""
    share = Share.of(config.train, team.place.size)
    batches = RankBatches(
        corpus.train, config.model.block_size, config.train.seed, share, team.place.rank
    )
    reader = DeviceBatches(batches, state.model.wte.weight.device)
    passes: RankPasses
    if isinstance(state.weights, ShardedWeights):
        dtype = choose_dtype(config.run.dtype, state.model.wte.weight.device)
        passes = FsdpPasses(
            team, share, reader, state.model, config.tokens_per_step, state.weights, dtype
        )
        sharded = sharded_optimizers(config.train, state.weights, state.optimizers, dtype)
        state.optimizers.updates, state.optimizers.names = sharded.updates, sharded.names
        state.optimizers.averages = sharded.averages
    else:
        passes = DdpPasses(
            team, share, reader, state.model, config.tokens_per_step, alone.loss_of, state.weights
        )
    share_orthogonalisation(team, state.optimizers)
    return passes


# ---- the leader --------------------------------------------------------------------------------


class LeaderState(TrainingState):
    """The training state of the leader. Its passes and optimizers give orders to the other ranks.

    The other ranks begin only at the first order. If the run was resumed, the loop has restored the
    checkpoint by then, so the leader can send them the restored tensors."""

    def __init__(
        self,
        team: Team,
        config: Config,
        corpus: Corpus,
        words: dict[str, Any],
        /,
        *args: Any,
        **more: Any,
    ) -> None:
        dtype = more["dtype"]
        if config.run.parallel == "fsdp":
            more["dtype"] = torch.float32
        super().__init__(*args, **more)
        self.progress.loss_scale = first_loss_scale(dtype)
        self._team, self._config, self._corpus, self._words = team, config, corpus, words
        self._orders = Orders(team)
        self._shared: RankPasses | None = None
        self._writer: ShardWriter | None = None
        self.optimizers = _LeadingOptimizers(self.optimizers, self)
        if config.run.parallel == "fsdp":
            self.weights = _LeadingShards(self)
        assert isinstance(self.passes, TorchPasses)
        self._alone = self.passes
        self.passes = _LeadingPasses(self, self._alone)
        self.is_busy = False

    def shared(self) -> RankPasses:
        """The passes that all ranks compute together. The first call makes all ranks ready."""
        if self._shared is None:
            optimizer = self.optimizers.state()
            slots = {name: list(optimizer[name].shape) for name in sorted(optimizer)}
            self._team.announce(self._words | {"slots": slots})
            self._team.connect(self._words["device"])
            self._team.share(starting_tensors(self))
            passes = rank_passes(self._team, self, self._alone, self._config, self._corpus)
            self._team.watch.begin(self._config.run.rank_timeout)
            self._writer = shard_writer(self._team, self, self._words)
            self._shared = passes
        return self._shared

    def files(self) -> TensorFiles:
        """The tensors of a checkpoint of this step. With a ShardWriter, they are in shards."""
        if self._writer is None:
            return super().files()

        def order(background: bool) -> None:
            with self.ordered("save", float(background)):
                pass  # the leader writes its own rows later, when the Saver calls `write`

        return LeaderShards(self._writer, order)

    @property
    def validation(self) -> TokenStore | None:
        """The validation split. An evaluation reads all of it or a part."""
        return self._corpus.val

    def has_begun(self) -> bool:
        """Whether the other ranks already take part."""
        return self._shared is not None

    @contextmanager
    def ordered(
        self, kind: Kind, first: float = 0.0, second: float = 0.0, third: float = 0.0
    ) -> Iterator[RankPasses]:
        """Give an order. In its `with` block, the leader does what it told the others to do."""
        passes = self.shared()
        self.is_busy = True
        self._orders.give(kind, first, second, third)
        yield passes
        self.is_busy = False

    def dismiss(self, code: int) -> None:
        """Let the other ranks end with an exit code. They must be waiting for an order."""
        self._orders.give("end", code)


class _LeadingPasses(TorchPasses):
    """The passes that the leader's loop calls."""

    def __init__(self, state: LeaderState, alone: TorchPasses) -> None:
        self._state, self.alone = state, alone
        self._gathered: tuple[tuple[int, bool], GPT] | None = None

    def gradients(self, batches: Iterable[Batch], count: int, seed: int, scale: float) -> Tensor:
        """Compute the gradients of the step on all ranks; return the step's mean loss, a scalar ().

        Each rank reads its share of the step itself, so `batches` is not used."""
        step = self._state.progress.step
        with self._state.ordered("gradients", step, scale) as passes:
            return passes.gradients(step, seed, scale)

    def publish(self) -> None:
        """Round the master weights into the model's weights. With FSDP, free gathered weights."""
        self.alone.publish()

    def evaluate(
        self, tokens: TokenStore, context: int, should_stop: Callable[[], bool]
    ) -> float | None:
        """The loss over a split. Each rank evaluates a share of it. None if a rank must stop."""
        first = 0 if tokens is self._state.validation else tokens.start
        end = first + len(tokens)
        with self._state.ordered("evaluate", first, end, context) as passes:
            return passes.evaluate(tokens, context, should_stop)

    def model(self) -> GPT:
        """The model with the current weights, complete on this rank."""
        state = self._state
        if not (isinstance(state.weights, ShardedWeights) and state.has_begun()):
            return self.alone.model()
        current = state.progress.step, state.has_average
        if self._gathered is None or self._gathered[0] != current:
            sharded = state.model
            model = build_model(
                sharded.config, sharded.vocab_size, sharded.user_parts, state.weights.named()
            )
            self._gathered = current, model.to(sharded.wte.weight.device)
        return self._gathered[1]


class _LeadingOptimizers(Optimizers):
    """The leader's optimizers. All ranks do each step together."""

    def __init__(self, alone: Optimizers, state: LeaderState) -> None:
        self.names, self.updates, self._state = alone.names, alone.updates, state
        self.averages = alone.averages

    def step(self, rate: float, average: float = 0.0) -> None:
        """Update all parameters and their averages, on every rank."""
        with self._state.ordered("update", rate, average):
            super().step(rate, average)

    def state(self) -> dict[str, Tensor]:
        """The complete optimizer state: "slot/parameter" -> tensor. Gathers shards."""
        weights = self._state.weights
        if not (isinstance(weights, ShardedWeights) and self._state.has_begun()):
            return super().state()
        with self._state.ordered("gather state"):
            return weights.gather_state(super().state())


class _LeadingShards(ShardedWeights):
    """The leader's sharded weights; `named` gathers the complete weights."""

    def __init__(self, state: LeaderState) -> None:
        super().__init__(state.model)
        self._state = state

    def named(self) -> dict[str, Tensor]:
        """The complete master weights by parameter name."""
        if not self._state.has_begun():
            return super().named()
        with self._state.ordered("gather weights", float(self._state.has_average)):
            return self.gather()


def starting_tensors(state: TrainingState) -> list[Tensor]:
    """The tensors with which all ranks begin: the master weights and the optimizers' state."""
    optimizer = state.optimizers.state()
    return [
        *(master.detach() for _, master in state.weights.masters),
        *(optimizer[name] for name in sorted(optimizer)),
    ]


# ---- the others --------------------------------------------------------------------------------


def follow(
    team: Team, state: TrainingState, config: Config, corpus: Corpus, words: dict[str, Any]
) -> int:
    """Carry out the leader's orders until the end, and return the exit code that the leader names.

    `words` is the leader's first message (see Team.announce)."""
    orders = Orders(team)
    assert isinstance(state.passes, TorchPasses)
    passes = rank_passes(team, state, state.passes, config, corpus)
    team.watch.begin(config.run.rank_timeout)
    writer = shard_writer(team, state, words)
    while True:
        kind, first, second, third = orders.receive()
        if kind == "end":
            return int(first)
        if kind == "gradients":
            passes.gradients(int(first), dropout_seed(config.train.seed, int(first)), second)
        elif kind == "evaluate":
            assert corpus.val is not None
            # the whole split, its beginning or one text
            tokens = corpus.val.part(int(first), int(second))
            with state.averaged():
                passes.evaluate(tokens, int(third), team.wants_stop)
        elif kind == "save":
            assert writer is not None
            writer.follow(background=bool(first))
        elif kind != "update":
            assert isinstance(state.weights, ShardedWeights)
            if kind == "gather weights":
                with state.averaged() if first else nullcontext():
                    state.weights.gather()
            else:
                state.weights.gather_state(state.optimizers.state())
        else:
            if config.train.grad_clip > 0:
                state.weights.clip(float(state.weights.norm()), config.train.grad_clip)
            state.optimizers.step(first, second)
            passes.publish()
            state.weights.clear_grads()
