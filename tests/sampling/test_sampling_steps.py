"""The step that a GPU records: of one shape, nothing read back, and nothing changed by recording.

That it writes what every other way writes is in test_sampling_generate.py."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from gptcli.sampling.choose import Choice
from gptcli.sampling.generate import Uniforms
from gptcli.sampling.step_streams import StepStreams

sys.path.insert(0, str(Path(__file__).parent))
from sampling_models import model

ARCHS = pytest.mark.parametrize("arch", ["modern", "gpt2"])
ALL = Choice(0.9, top_k=9, top_p=0.95, min_p=0.01, repetition_penalty=1.3)


def numbers(streams: int, steps: int) -> torch.Tensor:
    return torch.stack([Uniforms(5, i).take(steps) for i in range(streams)])


@ARCHS
@pytest.mark.parametrize("how", [Choice(0.0), ALL])
def test_a_step_reads_nothing_back(arch: str, how: Choice) -> None:
    """On a device without memory: a number that the host asks for, or a tensor of the host's among
    the operands, raises."""
    room = StepStreams(model(arch).to("meta"), 3, how)
    with torch.no_grad():
        room._step(8)
    with pytest.raises(RuntimeError):
        int(room._token[0])
    with pytest.raises(RuntimeError):
        room._place.add_(torch.ones(3))


@ARCHS
def test_a_step_allocates_nothing_that_stays(arch: str) -> None:
    room = StepStreams(model(arch), 2, ALL)
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


class _Rehearsed(StepStreams):
    """Makes the steps that come before a recording."""

    def _record(self, span: int) -> Callable[[], None]:
        with torch.no_grad():
            for _ in range(4):
                self._step(span)
        return super()._record(span)


@ARCHS
@pytest.mark.parametrize("width", [8, 200])
def test_recording_changes_nothing(arch: str, width: int) -> None:
    """Over several spans, past the window, and in between."""
    m = model(arch, width=width)
    texts = []
    for kind in (StepStreams, _Rehearsed):
        room = kind(m, 2, ALL)
        room.feed({0: [1, 2, 3], 1: [4]}, anew=True)
        got = [room.run([0, 1], numbers(2, 300))]
        room.feed({1: [5, 6]}, anew=False)
        got.append(room.run([0, 1], numbers(2, 20)))
        texts.append(torch.cat(got).tolist())
    assert texts[0] == texts[1]


@ARCHS
def test_a_stream_that_waits_is_not_changed(arch: str) -> None:
    m = model(arch)
    together = StepStreams(m, 2, ALL)
    together.feed({0: [1, 2], 1: [3, 4, 5]}, anew=True)
    together.run([0, 1], numbers(2, 30))
    together.run([1], numbers(2, 40)[1:])
    alone = StepStreams(m, 1, ALL)
    alone.feed({0: [1, 2]}, anew=True)
    alone.run([0], numbers(1, 30))
    assert together.run([0], numbers(1, 9)).tolist() == alone.run([0], numbers(1, 9)).tolist()


@ARCHS
def test_alike_prompts_are_read_once(arch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    m = model(arch)
    rows: list[int] = []
    forward = m.forward
    monkeypatch.setattr(
        m, "forward", lambda idx, **k: (rows.append(len(idx)), forward(idx, **k))[1]
    )
    room = StepStreams(m, 5, Choice(0.0))
    room.feed({i: [1, 2, 3 + (i == 4)] for i in range(5)}, anew=True)
    first = room.run(range(5), numbers(5, 1))
    assert rows == [1, 5]  # the last token is fed by the step
    assert len(set(first[0, :4].tolist())) == 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@ARCHS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_recorded_step_writes_what_the_step_writes(arch: str, dtype: torch.dtype) -> None:
    class Plain(StepStreams):
        def _record(self, span: int) -> Callable[[], None]:
            return lambda: self._step(span)

    m = model(arch, width=200).to("cuda", dtype)
    texts = []
    for kind in (StepStreams, Plain):
        room = kind(m, 2, ALL)
        room.feed({0: [1, 2, 3], 1: [4]}, anew=True)
        texts.append(room.run([0, 1], numbers(2, 300)).tolist())
    assert texts[0] == texts[1]
