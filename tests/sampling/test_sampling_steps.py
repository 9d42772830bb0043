"""The step that a GPU records: of one shape, nothing read back, and nothing changed by recording.

That it writes what every other way writes is in test_sampling_generate.py."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from gptcli.sampling import graph_streams
from gptcli.sampling.generate import Uniforms
from gptcli.sampling.graph_streams import GraphStreams
from gptcli.sampling.next_token import SamplingParams
from gptcli.sampling.torch_streams import TorchStreams
from tests.sampling.sampling_models import model

ARCHS = pytest.mark.parametrize("arch", ["modern", "gpt2"])
ALL = SamplingParams(0.9, top_k=9, top_p=0.95, min_p=0.01, repetition_penalty=1.3)


def numbers(streams: int, steps: int) -> torch.Tensor:
    return torch.stack([Uniforms(5, i).take(steps) for i in range(streams)])


@ARCHS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("how", [SamplingParams(0.0), ALL])
def test_a_step_reads_nothing_back(arch: str, how: SamplingParams, dtype: torch.dtype) -> None:
    """On a device without memory: a number that the host asks for, or a tensor of the host's among
    the operands, raises."""
    room = GraphStreams(model(arch).to("meta").branches_in(dtype), 3, how)
    with torch.no_grad():
        room._step(8)
    with pytest.raises(RuntimeError):
        int(room._token[0])
    with pytest.raises(RuntimeError):
        room._place.add_(torch.ones(3))


@ARCHS
def test_a_step_allocates_nothing_that_stays(arch: str) -> None:
    room = GraphStreams(model(arch), 2, ALL)
    room.feed({0: [1, 2], 1: [3]}, anew=True)
    room.run([0, 1], numbers(2, 5))
    before = {
        name: value.data_ptr() for name, value in vars(room).items() if torch.is_tensor(value)
    }
    room.run([0, 1], numbers(2, 5))
    assert before == {
        name: value.data_ptr() for name, value in vars(room).items() if torch.is_tensor(value)
    }
    assert len(before) >= 7


class _Rehearsal:
    """Makes the steps of a recording, and records nothing."""

    def record(self, step: Callable[[], None]) -> None:
        for _ in range(4):
            step()


@ARCHS
@pytest.mark.parametrize("width", [8, 200])
def test_recording_changes_nothing(arch: str, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over several spans, past the window, and in between."""
    m = model(arch, width=width)
    texts = []
    for recorder in (None, _Rehearsal()):
        room = GraphStreams(m, 2, ALL)
        monkeypatch.setattr(room, "_recorder", recorder)
        room.feed({0: [1, 2, 3], 1: [4]}, anew=True)
        got = [room.run([0, 1], numbers(2, 300))]
        room.feed({1: [5, 6]}, anew=False)
        got.append(room.run([0, 1], numbers(2, 20)))
        texts.append(torch.cat(got).tolist())
    assert texts[0] == texts[1]


@ARCHS
def test_a_stream_that_waits_is_not_changed(arch: str) -> None:
    m = model(arch)
    together = GraphStreams(m, 2, ALL)
    together.feed({0: [1, 2], 1: [3, 4, 5]}, anew=True)
    together.run([0, 1], numbers(2, 30))
    together.run([1], numbers(2, 40)[1:])
    alone = GraphStreams(m, 1, ALL)
    alone.feed({0: [1, 2]}, anew=True)
    alone.run([0], numbers(1, 30))
    assert together.run([0], numbers(1, 9)).tolist() == alone.run([0], numbers(1, 9)).tolist()


@ARCHS
def test_half_branches_write_as_whole_ones_at_first(arch: str) -> None:
    texts = []
    for dtype in (torch.float32, torch.bfloat16):
        m = model(arch).branches_in(dtype)
        for kind in (GraphStreams, TorchStreams):
            room = kind(m, 2, SamplingParams(0.0))
            room.feed({0: [1, 2, 3], 1: [3, 4, 5]}, anew=True)
            texts.append(room.run([0, 1], numbers(2, 30)))
    assert all(torch.equal(text[:2], texts[0][:2]) for text in texts)
    assert texts[0].shape == texts[2].shape


@ARCHS
def test_alike_prompts_are_read_once(arch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    m = model(arch)
    rows: list[int] = []
    forward = m.forward
    monkeypatch.setattr(
        m, "forward", lambda idx, **k: (rows.append(len(idx)), forward(idx, **k))[1]
    )
    room = GraphStreams(m, 5, SamplingParams(0.0))
    room.feed({i: [1, 2, 3 + (i == 4)] for i in range(5)}, anew=True)
    first = room.run(range(5), numbers(5, 1))
    assert rows == [1, 5]  # the last token is fed by the step
    assert len(set(first[0, :4].tolist())) == 1


class _Unrecordable(TorchDispatchMode):
    """Raises at what a graph of a GPU cannot hold, as far as PyTorch says so of its operations."""

    FORBIDDEN = ("_local_scalar_dense", "nonzero", "lift_fresh", "masked_select", "is_nonzero")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        assert name not in self.FORBIDDEN, name
        assert torch.Tag.cudagraph_unsafe not in func.tags, name
        assert torch.Tag.data_dependent_output not in func.tags, name
        assert torch.Tag.dynamic_output_shape not in func.tags, name
        return func(*args, **(kwargs or {}))


@ARCHS
@pytest.mark.parametrize("how", [SamplingParams(0.0), ALL])
def test_a_step_can_be_recorded(arch: str, how: SamplingParams) -> None:
    room = GraphStreams(model(arch), 2, how)
    room.feed({0: [1, 2], 1: [3]}, anew=True)
    room.run([0, 1], numbers(2, 2))  # makes what is made once
    with torch.no_grad(), _Unrecordable():
        room._step(8)
    with _Unrecordable(), pytest.raises(AssertionError):
        torch.tensor(1.0)
    with _Unrecordable(), pytest.raises(AssertionError):
        int(room._token[0])


@ARCHS
def test_a_room_goes_when_nobody_needs_it(arch: str) -> None:
    """At once, not when garbage is looked for: on a GPU its rings are half of the memory."""
    room = GraphStreams(model(arch), 2, ALL)
    room.feed({0: [1, 2], 1: [3]}, anew=True)
    room.run([0, 1], numbers(2, 3))
    gone = weakref.ref(room)
    gc.disable()
    try:
        del room
        assert gone() is None
    finally:
        gc.enable()


@ARCHS
def test_what_prompts_take_beside_the_rings_is_bounded(
    arch: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    m = model(arch)
    room = GraphStreams(m, 40, SamplingParams(0.0))
    slots: list[int] = []
    new_cache = m.new_cache
    monkeypatch.setattr(
        m, "new_cache", lambda n, width: (slots.append(n * width), new_cache(n, width))[1]
    )
    monkeypatch.setattr(graph_streams, "_READ_AT_ONCE", 20)
    room.feed({i: [i % 13, i // 13, 1, 2, 3] for i in range(39)}, anew=True)
    room.run(range(39), numbers(39, 2))
    assert max(slots) == 20
    assert sum(slots) == 39 * 4


gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


def written(room: GraphStreams, *, recorded: bool = True) -> list[list[int]]:
    if not recorded:
        room._recorder = None
    room.feed({0: [1, 2, 3], 1: [4]}, anew=True)
    text: list[list[int]] = room.run([0, 1], numbers(2, 300)).tolist()
    graphs = room._recorded.values()
    assert bool(graphs) == recorded
    assert all(isinstance(graph, torch.cuda.CUDAGraph) for graph in graphs)
    return text


@gpu
@ARCHS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("how", [SamplingParams(0.0), ALL])
def test_a_recorded_step_writes_what_the_step_writes(
    arch: str, dtype: torch.dtype, how: SamplingParams
) -> None:
    m = model(arch, width=200).to("cuda").branches_in(dtype)
    plain = written(GraphStreams(m, 2, how), recorded=False)
    assert written(GraphStreams(m, 2, how)) == plain


@gpu
@ARCHS
def test_recordings_do_not_need_each_other(arch: str) -> None:
    """One room goes, another comes, a third writes as before."""
    m = model(arch, width=200).to("cuda")
    stays, goes = GraphStreams(m, 2, ALL), GraphStreams(m, 2, ALL)
    first = written(stays)
    assert written(goes) == first
    del goes
    gc.collect()
    torch.cuda.empty_cache()
    assert written(GraphStreams(m, 2, ALL)) == first
    assert written(stays) == first


@gpu
@ARCHS
def test_steps_do_not_wait_for_the_host(arch: str) -> None:
    m = model(arch, width=200).to("cuda")
    room = GraphStreams(m, 2, ALL)
    written(room)
    room._at.zero_()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(20):
            room._recorded[200].replay()
        with torch.no_grad():
            room._step(200)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@gpu
def test_what_cannot_be_recorded_is_made_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    m = model("modern", width=200).to("cuda")
    plain = written(GraphStreams(m, 2, ALL), recorded=False)
    room = GraphStreams(m, 2, ALL)
    step = room._step

    def asks(span: int) -> None:
        step(span)
        if torch.cuda.is_current_stream_capturing():
            int(room._at[0])

    monkeypatch.setattr(room, "_step", asks)
    room.feed({0: [1, 2, 3], 1: [4]}, anew=True)
    assert room.run([0, 1], numbers(2, 300)).tolist() == plain
    assert set(room._recorded.values()) == {None}
    assert torch.cuda.current_stream() == torch.cuda.default_stream()
    monkeypatch.undo()
    assert written(GraphStreams(m, 2, ALL)) == plain
