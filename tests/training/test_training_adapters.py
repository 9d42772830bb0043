"""Low-rank adapters (LoRA): how they are folded into the weights, which gradients they get, which
weights change, and that a resumed run ends with the same bytes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from gptcli.config import Config, LoraConfig, ModelConfig, TrainConfig
from gptcli.config_files import parse_config
from gptcli.errors import GptcliError
from gptcli.events import Evaluated, Event, Finished
from gptcli.model.gpt import GPT
from gptcli.native import library
from gptcli.native.engine import training_source
from gptcli.training import checkpoint
from gptcli.training.adapters import Adapters, resolve_adapters
from gptcli.training.estimate import adapter_parameters
from gptcli.training.setup import prepare_new
from gptcli.training.training_state import TrainingState, build_model
from tests.training.conftest import BASE

Drive = Callable[..., list[Event]]
VOCABULARY = 33
ARCHS = ("modern", "gpt2")


def network(arch: Any, **more: Any) -> ModelConfig:
    return ModelConfig(arch=arch, n_layer=2, n_head=2, n_embd=32, block_size=16, **more)


def state_with(
    lora: LoraConfig, model: ModelConfig, dtype: torch.dtype = torch.float32, **more: Any
) -> TrainingState:
    """A TrainingState with adapters, whose network is random and has no weight that is 0."""
    base = build_model(model, VOCABULARY, seed=5)
    generator = torch.Generator().manual_seed(6)
    weights = {
        name: p.detach() + 0.1 * torch.randn(p.shape, generator=generator)
        for name, p in base.named_parameters()
    }
    train = TrainConfig(
        lora=lora, batch_size=3, max_steps=4, optimizer=more.pop("optimizer", "muon")
    )
    return TrainingState(
        model, train, VOCABULARY, dtype=dtype, device=torch.device("cpu"), weights=weights, **more
    )


def adapters_of(state: TrainingState) -> Adapters:
    assert state.adapters is not None
    return state.adapters


def with_random_b(state: TrainingState) -> Adapters:
    """Make B random, as in the middle of a training. Return the adapters."""
    adapters = adapters_of(state)
    generator = torch.Generator().manual_seed(8)
    for adapter in adapters.adapters:
        adapter.B.copy_(0.3 * torch.randn(adapter.B.shape, generator=generator))
    state.passes.publish()
    return adapters


def batch(seed: int = 7) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    idx, targets = torch.randint(0, VOCABULARY, (2, 3, 16), generator=generator)
    return idx, targets


class Applied(nn.Module):
    """Adds scale * B A to a layer's weight, as a parametrization of PyTorch.

    Thus autograd computes gradients of A and B."""

    def __init__(self, A: torch.Tensor, B: torch.Tensor, scale: float) -> None:
        super().__init__()
        self.A, self.B, self.scale = nn.Parameter(A.clone()), nn.Parameter(B.clone()), scale

    def forward(self, base: torch.Tensor) -> torch.Tensor:
        return base + self.scale * (self.B @ self.A)


def applied_model(state: TrainingState) -> tuple[GPT, dict[str, Applied]]:
    """A model that adds each layer's adapter to the base weights in the forward pass.

    Thus autograd computes gradients of A and B. Also returns a dict layer -> module, with the
    modules that hold A and B."""
    adapters = adapters_of(state)
    model = build_model(
        state.model.config, VOCABULARY, weights={n: p.detach() for n, p in state.weights.masters}
    )
    found = {}
    for adapter in adapters.adapters:
        layer = model.get_submodule(adapter.name)
        with torch.no_grad():
            layer.weight.copy_(adapter.base)  # type: ignore[operator,union-attr]
        found[adapter.name] = Applied(adapter.A, adapter.B, adapters.scale)
        parametrize.register_parametrization(layer, "weight", found[adapter.name])
    return model, found


@pytest.mark.parametrize("arch", ARCHS)
def test_the_first_step_starts_from_the_base_weights_exactly(arch: str) -> None:
    state = state_with(LoraConfig(rank=4), network(arch))
    base = {name: p.detach().clone() for name, p in state.weights.masters}
    idx, _ = batch()
    before = state.passes.model()(idx)
    state.passes.publish()
    assert torch.equal(state.passes.model()(idx), before)
    assert all(torch.equal(p, base[name]) for name, p in state.weights.masters)


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("targets", [["all"], ["attention"], ["attn.value"]])
def test_logits_and_gradients_are_those_of_adapters_beside_the_weights(
    arch: str, targets: list[str]
) -> None:
    state = state_with(LoraConfig(rank=4, alpha=12.0, targets=targets), network(arch))
    adapters = with_random_b(state)
    idx, target_ids = batch()
    model, applied = applied_model(state)
    torch.testing.assert_close(
        state.passes.model()(idx), model(idx), atol=2e-5, rtol=1e-5, msg="logits"
    )
    state.passes.gradients([(idx, target_ids)], 1, 0, 1.0)
    model.loss(idx, target_ids).backward()
    for adapter in adapters.adapters:
        theirs = applied[adapter.name]
        torch.testing.assert_close(adapter.A.grad, theirs.A.grad, atol=1e-6, rtol=1e-3)
        torch.testing.assert_close(adapter.B.grad, theirs.B.grad, atol=1e-6, rtol=1e-3)


@pytest.mark.parametrize("arch", ARCHS)
def test_the_c_library_gives_the_gradients_of_pytorch(arch: str) -> None:
    source = training_source(torch.float32)
    assert source is not None
    if library.find(source).library is None:
        pytest.skip("no C library here")
    lora = LoraConfig(rank=4, dropout=0.3)
    found = []
    for engine in ("torch", "native"):
        state = state_with(lora, network(arch), engine=engine)
        adapters = with_random_b(state)
        state.passes.gradients([batch(), batch(9)], 2, 11, 1.0)
        found.append([p.grad for _, p in adapters.parameters])
        assert float(adapters.norm()) > 0
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-3)


def test_dropout_is_a_function_of_the_seed_and_ends_with_the_step() -> None:
    state = state_with(LoraConfig(rank=4, dropout=0.5), network("modern"))
    adapters = with_random_b(state)
    whole = [a.weight.detach().clone() for a in adapters.adapters]

    def gradients(seed: int) -> list[torch.Tensor]:
        state.passes.gradients([batch()], 1, seed, 1.0)
        return [p.grad.clone() for _, p in adapters.parameters if p.grad is not None]

    first, other, again = gradients(1), gradients(2), gradients(1)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))
    # If an input is dropped, the input's column of A gets the gradient 0. Because the dropout is
    # 0.5, about half of the columns have this gradient.
    left_out = torch.stack([g.eq(0).all(dim=0).float().mean() for g in first[::2]])
    assert 0.3 < float(left_out.mean()) < 0.7
    state.passes.publish()
    assert all(torch.equal(a.weight, w) for a, w in zip(adapters.adapters, whole, strict=True))


def test_the_mean_of_the_masked_weights_is_the_whole_weight() -> None:
    state = state_with(LoraConfig(rank=4, dropout=0.4), network("modern"))
    adapters = with_random_b(state)
    adapter = adapters.adapters[0]
    whole, total = adapter.weight.detach().clone(), torch.zeros_like(adapter.weight)
    for seed in range(400):
        adapters.fold(seed)
        total += adapter.weight.detach()
    error = (total / 400 - whole).abs().max() / (whole - adapter.base).abs().max()
    assert error < 0.2


def test_names_presets_and_counts() -> None:
    arch = network("gpt2").traits
    assert LoraConfig(targets=["feed_forward"]).names(arch) == ("mlp.c_fc", "mlp.c_proj")
    assert LoraConfig(targets=["attention", "mlp.c_fc"]).names(arch)[-1] == "mlp.c_fc"
    for name in ARCHS:
        config = Config(
            model=network(name), train=TrainConfig(lora=LoraConfig(rank=3, targets=["all"]))
        )
        state = state_with(LoraConfig(rank=3), network(name))
        adapters = adapters_of(state)
        assert adapters.count == adapter_parameters(config, VOCABULARY)
        whole = config.model_copy(
            update={"train": TrainConfig(lora=LoraConfig(rank=3, embeddings=True))}
        )
        tables = [p for n, p in state.weights.masters if n in ("wte.weight", "lm_head.weight")]
        both = adapter_parameters(whole, VOCABULARY)
        assert (
            both
            == adapters_of(state_with(LoraConfig(rank=3, embeddings=True), network(name))).count
        )
        none = adapter_parameters(
            config.model_copy(
                update={"train": TrainConfig(lora=LoraConfig(rank=3, embeddings=False))}
            ),
            VOCABULARY,
        )
        assert (both or 0) - (none or 0) == sum(p.numel() for p in tables)
        # By default, exactly the matrices in the blocks get adapters.
        matrices = {n for n, p in state.weights.masters if n.startswith("h.") and p.dim() == 2}
        assert {f"{a.name}.weight" for a in adapters.adapters} == matrices


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.lora.targets=q_proj", "did you mean `attn.query`"),
        ("train.lora.targets=c_proj", "write `attn.c_proj` or `mlp.c_proj`"),
        ("train.lora.targets=mlp.c_fc", "it has attn.query, attn.key"),
        ("train.lora.rank=0", "rank"),
        ("train.lora.r=4", "did you mean `train.lora.rank`"),
        ("train.lora=8", "for example train.lora={rank: 8}"),
        ("train.lora.targets=[]", "attention"),
    ],
)
def test_a_wrong_setting_says_what_to_write(override: str, words: str) -> None:
    with pytest.raises(GptcliError) as caught:
        parse_config("", [override])
    assert words in f"{caught.value.message} {caught.value.hint}"


# ---- the embedding and the head ------------------------------------------------------------------


@pytest.mark.parametrize("arch", ARCHS)
def test_tables_get_the_gradients_of_full_training(arch: str) -> None:
    """The tables (embedding and head) have no A and B.

    They are trained directly, so they get the same gradients as in full training."""
    state = state_with(LoraConfig(rank=4, embeddings=True), network(arch))
    adapters = with_random_b(state)
    assert adapters.tables == (
        ["wte.weight", "lm_head.weight"] if arch == "modern" else ["wte.weight"]
    )
    idx, target_ids = batch()
    model, _ = applied_model(state)
    state.passes.gradients([(idx, target_ids)], 1, 0, 1.0)
    model.loss(idx, target_ids).backward()
    theirs = dict(model.named_parameters())
    trained = dict(adapters.parameters)
    for name in adapters.tables:
        torch.testing.assert_close(trained[name].grad, theirs[name].grad, atol=1e-6, rtol=1e-3)
    first, *blocks, last = adapters.norms_by_part()
    assert len(blocks) == 2
    assert first == pytest.approx(float(theirs["wte.weight"].grad.norm()), rel=1e-3)
    assert (last > 0) == (arch == "modern")
    squares = [first**2, last**2, *(block**2 for block in blocks)]
    assert float(adapters.norm()) == pytest.approx(sum(squares) ** 0.5, rel=1e-5)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_tables_do_not_decay(kind: Any) -> None:
    """Weight decay pulls weights towards 0, but the embedding of a fine-tune should stay near the
    base's."""
    lora = LoraConfig(rank=4, embeddings=True)
    state = state_with(lora, network("modern"), optimizer=kind)
    adapters = adapters_of(state)
    before = {name: p.detach().clone() for name, p in adapters.parameters}
    for _, p in adapters.parameters:
        p.grad = torch.zeros_like(p)
    state.optimizers.step(1.0)
    for name, p in adapters.parameters:
        assert torch.equal(p, before[name]) == (name in adapters.tables or name.endswith("lora_B"))


def test_auto_trains_tables_that_are_no_larger_than_the_adapters() -> None:
    for rank, vocabulary, expected in ((1, 33, False), (2, 33, True), (2, 300, False)):
        config = Config(model=network("modern"), train=TrainConfig(lora=LoraConfig(rank=rank)))
        without = LoraConfig(rank=rank, embeddings=False)
        plain = config.model_copy(update={"train": TrainConfig(lora=without)})
        adapters = adapter_parameters(plain, vocabulary)
        assert adapters is not None
        assert (2 * vocabulary * 32 <= adapters) == expected, adapters
        resolved = resolve_adapters(config, vocabulary)
        assert resolved is not None
        assert resolved.embeddings is expected
        assert (adapter_parameters(config, vocabulary) == adapters) == (not expected)


# ---- runs --------------------------------------------------------------------------------------


@pytest.fixture
def base(new: Any, drive: Drive, tmp_path: Path) -> Path:
    """The run from which the fine-tunes start."""
    drive(new("base"))
    return tmp_path / "base"


def tuning(folder: Path, base: Path, text: Path, *overrides: str) -> Any:
    """Prepare to fine-tune the run `base` with adapters, and return the Setup.

    The fine-tune writes to `folder`."""
    words = (*BASE, "train.lora.rank=2", "train.learning_rate=0.01", *overrides)
    config = parse_config("", [f"data.source={text}", *words])
    return prepare_new(config, folder, from_run=base).setup


@pytest.mark.parametrize("dropout", ["0.0", "0.25"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_stopped_run_ends_with_the_same_bytes(
    base: Path,
    resumed: Any,
    drive: Drive,
    tmp_path: Path,
    text_file: Path,
    dropout: str,
    dtype: str,
) -> None:
    more = (
        f"train.lora.dropout={dropout}", f"run.dtype={dtype}", "train.eval_every=4",
        "train.lora.embeddings=true",
    )  # fmt: skip
    drive(tuning(tmp_path / "whole", base, text_file, *more))
    drive(tuning(tmp_path / "parts", base, text_file, *more), stop_at=7)
    drive(resumed("parts"))
    for name in ("model.safetensors", "state.safetensors"):
        whole, parts = (
            checkpoint.folder_of(tmp_path / run, 20) / name for run in ("whole", "parts")
        )
        assert whole.read_bytes() == parts.read_bytes()


@pytest.mark.parametrize("embeddings", ["auto", "true"])
def test_only_the_targets_change_and_the_checkpoint_is_complete(
    base: Path, drive: Drive, tmp_path: Path, text_file: Path, embeddings: str
) -> None:
    tables = ("wte.weight", "lm_head.weight") if embeddings == "true" else ()
    more = ("train.lora.targets=attention", f"train.lora.embeddings={embeddings}")
    drive(tuning(tmp_path / "r", base, text_file, *more))
    start, _ = checkpoint.best_valid(base)
    end = checkpoint.load(tmp_path / "r", 20, with_state=True)
    changed = {name for name, w in end.model.items() if not torch.equal(w, start.model[name])}
    names = ("query", "key", "value", "c_proj")
    assert changed == {*(f"h.0.attn.{name}.weight" for name in names), *tables}
    for name in tables:
        assert torch.equal(end.state[f"base/{name}"], start.model[name])
    for name in changed - {*tables}:
        layer = name.removesuffix(".weight")
        kept = end.state[f"base/{name}"]
        assert torch.equal(kept, start.model[name])
        A, B = (end.state[f"weight/{layer}.lora_{letter}"] for letter in "AB")
        folded = torch.addmm(kept, B, A, alpha=16.0 / 2)
        assert torch.equal(folded, end.model[name])


def test_a_fine_tune_is_evaluated_before_its_first_step(
    base: Path, drive: Drive, tmp_path: Path, text_file: Path
) -> None:
    more = ("train.eval_every=10", "train.keep_checkpoints=4")
    events = drive(tuning(tmp_path / "r", base, text_file, *more))
    losses = {e.step: e.val_loss for e in events if isinstance(e, Evaluated)}
    assert sorted(losses) == [0, 10, 20]
    last = events[-1]
    assert isinstance(last, Finished)
    assert last.first_val_loss == losses[0]
    meta = checkpoint.read_meta(tmp_path / "r", 0)
    assert meta["progress"]["first_val_loss"] == meta["progress"]["best_val_loss"] == losses[0]


def test_a_fine_tune_that_does_not_help_keeps_the_weights_it_started_from(
    base: Path, drive: Drive, tmp_path: Path, text_file: Path
) -> None:
    more = ("train.learning_rate=30", "train.grad_clip=0", "train.keep_checkpoints=2")
    events = drive(tuning(tmp_path / "r", base, text_file, "train.eval_every=5", *more))
    last = events[-1]
    assert isinstance(last, Finished)
    assert last.stopped == "done"
    assert last.best_step == 0
    saved, _ = checkpoint.best_valid(tmp_path / "r")
    start, _ = checkpoint.best_valid(base)
    assert all(torch.equal(w, start.model[name]) for name, w in saved.model.items())


def test_adapters_need_a_base_and_the_projects_own_parts(new: Any) -> None:
    with pytest.raises(GptcliError, match="needs a trained model"):
        new("r", "train.lora.rank=2")
