"""Streams that use CUDA graphs: a step has fixed shapes and copies nothing back to the host, and
the texts are the same with and without graphs.

test_sampling_generate.py compares the texts of all engines.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from gptcli.sampling import graph_streams
from gptcli.sampling.generate import UniformNumbers
from gptcli.sampling.graph_streams import GraphStreams
from gptcli.sampling.next_token import SamplingParams
from gptcli.sampling.torch_streams import TorchStreams
from tests.gpu import gpu
from tests.sampling.sampling_models import model

ARCHS = pytest.mark.parametrize("arch", ["modern", "gpt2"])
ALL = SamplingParams(0.9, top_k=9, top_p=0.95, min_p=0.01, repetition_penalty=1.3)


def numbers(streams: int, steps: int) -> list[list[float]]:
    return [UniformNumbers(5, i).take(steps) for i in range(streams)]


@pytest.mark.long_series
@ARCHS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("params", [SamplingParams(0.0), ALL])
def test_a_step_reads_nothing_back(arch: str, params: SamplingParams, dtype: torch.dtype) -> None:
    """A step must neither copy a number from the GPU nor use a tensor of the host.

    On the meta device, each of these two operations raises an error."""
    streams = GraphStreams(model(arch).to("meta").branches_in(dtype), 3, params)
    with torch.no_grad():
        streams._step(8)
    with pytest.raises(RuntimeError):
        int(streams._token[0])
    with pytest.raises(RuntimeError):
        streams._position.add_(torch.ones(3))


@ARCHS
def test_a_step_replaces_no_tensor(arch: str) -> None:
    streams = GraphStreams(model(arch), 2, ALL)
    streams.feed({0: [1, 2], 1: [3]}, restart=True)
    streams.run([0, 1], numbers(2, 5))
    before = {
        name: value.data_ptr() for name, value in vars(streams).items() if torch.is_tensor(value)
    }
    streams.run([0, 1], numbers(2, 5))
    assert before == {
        name: value.data_ptr() for name, value in vars(streams).items() if torch.is_tensor(value)
    }
    assert len(before) >= 7


class _Rehearsal:
    """Takes the place of the recorder of CUDA graphs, but records nothing.

    Calls the step as often as a recording does."""

    def record(self, step: Callable[[], None]) -> None:
        for _ in range(4):
            step()


@pytest.mark.long_series
@ARCHS
@pytest.mark.parametrize("width", [8, 200])
def test_recording_changes_nothing(arch: str, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The texts are longer than the window, and longer than several recorded spans.

    Between two calls of `run`, the test feeds more tokens."""
    m = model(arch, width=width)
    texts = []
    for recorder in (None, _Rehearsal()):
        streams = GraphStreams(m, 2, ALL)
        monkeypatch.setattr(streams, "_recorder", recorder)
        streams.feed({0: [1, 2, 3], 1: [4]}, restart=True)
        got = [streams.run([0, 1], numbers(2, 300))]
        streams.feed({1: [5, 6]}, restart=False)
        got.append(streams.run([0, 1], numbers(2, 20)))
        texts.append(got)
    assert texts[0] == texts[1]


@ARCHS
def test_an_idle_stream_does_not_change(arch: str) -> None:
    m = model(arch)
    together = GraphStreams(m, 2, ALL)
    together.feed({0: [1, 2], 1: [3, 4, 5]}, restart=True)
    together.run([0, 1], numbers(2, 30))
    together.run([1], numbers(2, 40)[1:])
    alone = GraphStreams(m, 1, ALL)
    alone.feed({0: [1, 2]}, restart=True)
    alone.run([0], numbers(1, 30))
    assert together.run([0], numbers(1, 9)) == alone.run([0], numbers(1, 9))


@ARCHS
def test_bfloat16_branches_begin_with_the_same_tokens(arch: str) -> None:
    texts = []
    for dtype in (torch.float32, torch.bfloat16):
        m = model(arch).branches_in(dtype)
        for kind in (GraphStreams, TorchStreams):
            streams = kind(m, 2, SamplingParams(0.0))
            streams.feed({0: [1, 2, 3], 1: [3, 4, 5]}, restart=True)
            texts.append(streams.run([0, 1], numbers(2, 30)))
    assert all(text[i][:2] == texts[0][i][:2] for text in texts for i in range(2))
    assert all([len(one) for one in text] == [30, 30] for text in texts)


@ARCHS
def test_equal_prompts_are_computed_once(arch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    m = model(arch)
    rows: list[int] = []
    forward = m.forward
    monkeypatch.setattr(
        m, "forward", lambda idx, **k: (rows.append(len(idx)), forward(idx, **k))[1]
    )
    streams = GraphStreams(m, 5, SamplingParams(0.0))
    streams.feed({i: [1, 2, 3 + (i == 4)] for i in range(5)}, restart=True)
    first = streams.run(range(5), numbers(5, 1))
    # There are two forward passes: one for [1, 2], with which all five prompts begin, then a step
    # of the five streams.
    assert rows == [1, 5]
    assert len({tokens[0] for tokens in first[:4]}) == 1


class _Unrecordable(TorchDispatchMode):
    """Raises an error at operations that a CUDA graph cannot record.

    They are those in FORBIDDEN, and those that PyTorch marks as cudagraph_unsafe,
    data_dependent_output or dynamic_output_shape."""

    FORBIDDEN = ("_local_scalar_dense", "nonzero", "lift_fresh", "masked_select", "is_nonzero")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        assert name not in self.FORBIDDEN, name
        assert torch.Tag.cudagraph_unsafe not in func.tags, name
        assert torch.Tag.data_dependent_output not in func.tags, name
        assert torch.Tag.dynamic_output_shape not in func.tags, name
        return func(*args, **(kwargs or {}))


@ARCHS
@pytest.mark.parametrize("params", [SamplingParams(0.0), ALL])
def test_a_step_can_be_recorded(arch: str, params: SamplingParams) -> None:
    streams = GraphStreams(model(arch), 2, params)
    streams.feed({0: [1, 2], 1: [3]}, restart=True)
    streams.run([0, 1], numbers(2, 2))  # the first run builds tables that are built only once
    with torch.no_grad(), _Unrecordable():
        streams._step(8)
    with _Unrecordable(), pytest.raises(AssertionError):
        torch.tensor(1.0)
    with _Unrecordable(), pytest.raises(AssertionError):
        int(streams._token[0])


@ARCHS
def test_streams_are_freed_without_garbage_collection(arch: str) -> None:
    """The KV cache of streams can take half of the free memory, so it must be freed at once.

    This works only if the streams form no reference cycle."""
    streams = GraphStreams(model(arch), 2, ALL)
    streams.feed({0: [1, 2], 1: [3]}, restart=True)
    streams.run([0, 1], numbers(2, 3))
    gone = weakref.ref(streams)
    gc.disable()
    try:
        del streams
        assert gone() is None
    finally:
        gc.enable()


@ARCHS
def test_the_extra_memory_of_a_prefill_is_bounded(
    arch: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    m = model(arch)
    streams = GraphStreams(m, 40, SamplingParams(0.0))
    slots: list[int] = []
    new_cache = m.new_cache
    monkeypatch.setattr(
        m, "new_cache", lambda n, width: (slots.append(n * width), new_cache(n, width))[1]
    )
    monkeypatch.setattr(graph_streams, "_PREFILL_SLOTS", 20)
    streams.feed({i: [i % 13, i // 13, 1, 2, 3] for i in range(39)}, restart=True)
    streams.run(range(39), numbers(39, 2))
    assert max(slots) == 20
    assert sum(slots) == 39 * 4


def written(streams: GraphStreams, *, recorded: bool = True) -> list[list[int]]:
    if not recorded:
        streams._recorder = None
    streams.feed({0: [1, 2, 3], 1: [4]}, restart=True)
    text = streams.run([0, 1], numbers(2, 300))
    graphs = streams._graphs.values()
    assert bool(graphs) == recorded
    assert all(isinstance(graph, torch.cuda.CUDAGraph) for graph in graphs)
    return text


@gpu
@ARCHS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("params", [SamplingParams(0.0), ALL])
def test_a_recorded_step_generates_the_same_text(
    arch: str, dtype: torch.dtype, params: SamplingParams
) -> None:
    m = model(arch, width=200).to("cuda").branches_in(dtype)
    plain = written(GraphStreams(m, 2, params), recorded=False)
    assert written(GraphStreams(m, 2, params)) == plain


@gpu
@ARCHS
def test_graphs_do_not_depend_on_other_streams_graphs(arch: str) -> None:
    """If one GraphStreams object frees its graphs, older and newer objects still write the same
    texts."""
    m = model(arch, width=200).to("cuda")
    kept, freed = GraphStreams(m, 2, ALL), GraphStreams(m, 2, ALL)
    first = written(kept)
    assert written(freed) == first
    del freed
    gc.collect()
    torch.cuda.empty_cache()
    assert written(GraphStreams(m, 2, ALL)) == first
    assert written(kept) == first


@gpu
@ARCHS
def test_steps_do_not_wait_for_the_host(arch: str) -> None:
    m = model(arch, width=200).to("cuda")
    streams = GraphStreams(m, 2, ALL)
    written(streams)
    streams._step_index.zero_()
    # Start at position 0 again, so that the following steps stay in the window.
    streams._position.zero_()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(20):
            streams._graphs[200].replay()
        with torch.no_grad():
            streams._step(200)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@gpu
def test_a_step_that_cannot_be_recorded_runs_without_a_graph(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    m = model("modern", width=200).to("cuda")
    plain = written(GraphStreams(m, 2, ALL), recorded=False)
    streams = GraphStreams(m, 2, ALL)
    step = streams._step

    def reads_back(span: int) -> None:
        step(span)
        if torch.cuda.is_current_stream_capturing():
            int(streams._step_index[0])

    monkeypatch.setattr(streams, "_step", reads_back)
    streams.feed({0: [1, 2, 3], 1: [4]}, restart=True)
    assert streams.run([0, 1], numbers(2, 300)) == plain
    assert set(streams._graphs.values()) == {None}
    assert torch.cuda.current_stream() == torch.cuda.default_stream()
    monkeypatch.undo()
    assert written(GraphStreams(m, 2, ALL)) == plain
