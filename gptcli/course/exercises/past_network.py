"""Check the outputs and positions of a learner's network that uses the cached attention.

The past is the keys and values of the tokens before the new ones. Dimensions: B batch, T new
tokens, N tokens of a text.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from gptcli.course.attention.cases import fill_parameters
from gptcli.course.attention.conventions.call import call_of
from gptcli.course.attention.conventions.constructor import Constructor
from gptcli.course.attention.conventions.settings import LearnerConfig
from gptcli.course.exercises.double_precision import DoublePrecision
from gptcli.course.exercises.explainer import Explainer
from gptcli.course.exercises.learner_module import close
from gptcli.course.exercises.past_call import PastCall, output_and_present, past_call
from gptcli.course.lesson import CheckFailed
from gptcli.plurals import agreeing, counted

_VOCAB, _PIECES = 65, (3, 1, 2)
_N = sum(_PIECES)


def check_network(
    learner: Explainer, module: ModuleType, attention: type[nn.Module]
) -> tuple[str, CheckFailed | None] | None:
    """The name of the network in the learner's file, and the CheckFailed if the network is wrong.

    The second is None if the network is right. Returns None instead of the pair if the file
    has no network that can be built and called with a past."""
    for cls in vars(module).values():
        if not inspect.isclass(cls) or not issubclass(cls, nn.Module) or cls is attention:
            continue
        if cls.__module__ != module.__name__:
            continue
        with contextlib.suppress(Exception):
            call = call_of(cls, cls.__name__)
            form = past_call(cls, learner.source.tree, call)
            if form is None or call.times != 1:
                continue
            constructor = Constructor(cls, learner.file.name)
            network = constructor.build(_config()).to(torch.float64).eval()
            if not _is_network(network, attention):
                continue
            fill_parameters(network, torch.Generator().manual_seed(4))
            with constructor.variables(_config()):
                return cls.__name__, _compare(learner, cls, network, form)
    return None


def _config() -> LearnerConfig:
    return LearnerConfig(
        n_embd=12, n_head=3, dropout=0.0, bias=True, block_size=16, vocab_size=_VOCAB, n_layer=2
    )


def _is_network(module: nn.Module, attention: type[nn.Module]) -> bool:
    parts = list(module.modules())
    has_attention = any(isinstance(part, attention) for part in parts)
    return has_attention and any(isinstance(part, nn.Embedding) for part in parts)


def _compare(
    learner: Explainer, cls: type[nn.Module], network: nn.Module, form: PastCall
) -> CheckFailed | None:
    """The CheckFailed if `network` gives wrong outputs with a past, else None."""
    generator = torch.Generator().manual_seed(9)
    ids = torch.randint(_VOCAB, (2, _N), generator=generator)
    whole, _ = _call(copy.deepcopy(network), form, ids, None, 0)
    running, past, start = copy.deepcopy(network), None, 0
    lines = learner.source.class_lines(cls.__name__, constructor=False)
    for count in _PIECES:
        piece = ids[:, start : start + count]
        with _positions(running, piece) as seen:
            y, past = _call(running, form, piece, past, start)
        wanted = whole[:, start : start + count]
        if y.shape[1] < count:  # the network returns only the last token's logits
            y, wanted = y[:, -1:], wanted[:, -1:]
        at = next((int(one.flatten()[0]) for one in seen if one.numel()), start)
        if at != start:
            return learner.mistake(
                "positions-not-offset", f" (in `{cls.__name__}`)", at=at, within=lines,
                start=f"{counted(start, 'token')} {agreeing(start, 'comes', 'come')}",
            )  # fmt: skip
        if whole.shape[1] == _N and not close(y, wanted):
            by = f"{float((y - wanted).abs().max()):.2g}"
            quote = learner.source.quote(learner.source.find(r"past|cache|kv", lines))
            return learner.failed_at(
                2,
                "wrong-result",
                f"with the past, your `{cls.__name__}` gives another result than on the whole "
                f"text, although `{_attention_of(network)}` does not{quote} "
                f"({counted(count, 'new token')} after {counted(start, 'earlier token')}: a "
                f"difference of up to {by})",
                "which layer's keys and values does each layer get?",
            )
        if past is None and not form.keeps_state:
            return learner.mistake(
                "present-not-returned", f" (in `{cls.__name__}`)", got="no past", within=lines
            )
        start += count
    return None


def _attention_of(network: nn.Module) -> str:
    names = [type(part).__name__ for part in network.modules()]
    return next((name for name in names if "tten" in name), names[0])


def _call(
    network: nn.Module, form: PastCall, ids: Tensor, past: Any, start: int
) -> tuple[Tensor, Any]:
    """The network's logits for `ids`, and the past (keys and values) for the tokens after `ids`."""
    with torch.no_grad(), DoublePrecision():
        out = form(network, ids, past, start, cached=True)
    y, present = output_and_present(out, ids, two=False)
    assert isinstance(y, Tensor)
    assert y.dim() == 3
    return y, present


@contextlib.contextmanager
def _positions(network: nn.Module, ids: Tensor) -> Iterator[list[Tensor]]:
    """A context manager that records the positions: what the embeddings get besides `ids`."""
    seen: list[Tensor] = []

    def look(_: nn.Module, given: tuple[Any, ...]) -> None:
        if isinstance(given[0], Tensor) and not torch.equal(given[0], ids):
            seen.append(given[0])

    hooks = [
        part.register_forward_pre_hook(look)
        for part in network.modules()
        if isinstance(part, nn.Embedding)
    ]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()
