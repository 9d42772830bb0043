"""The thread team of the C libraries: no OpenMP, forks during a run, several callers at once."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch

from gptcli.model.gpt import GPT
from gptcli.model.weights import Weights
from gptcli.native import library
from gptcli.native.decoder import Decoder
from gptcli.native.library import SAMPLING, TRAINING, TRAINING_FLOAT32, SamplingParamsStruct
from gptcli.processor import features_and_flags
from tests.conftest import Once
from tests.native.conftest import compiled, found_or_skipped
from tests.native.native_models import batch, network
from tests.sampling.sampling_models import model

SOURCES = (TRAINING, TRAINING_FLOAT32, SAMPLING)
STEPS = 12
_SECONDS_FOR_A_CHILD = 300.0

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="the C libraries need Linux"),
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),
]


def test_no_library_needs_openmp() -> None:
    words = re.compile(r"#\s*pragma\s+omp|\bomp_\w+\s*\(|<omp\.h>")
    for path in library._sources():
        assert not words.search(path.read_text("utf-8")), path
    for source in SOURCES:
        assert not [flag for flag in (*library._FLAGS, *source.flags) if "openmp" in flag]


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.name)
def test_clang_compiles_each_library(source: library.Source, once: Once) -> None:
    if shutil.which("clang") is None:
        pytest.skip("clang is not installed")
    flags: tuple[str, ...] = ("-march=native",)
    if source.required_features:
        if platform.machine() != "x86_64":
            pytest.skip("this library is only for x86-64")
        flags = features_and_flags("avx512_bf16").flags
    path = compiled(once, source, (*flags, "-O1", "-w"), with_="clang")
    assert b"request_amx" in path.read_bytes()


# ---- forks and several callers -------------------------------------------------------------------


@pytest.fixture(scope="module")
def sampling() -> ctypes.CDLL:
    """The sampling library of this machine."""
    return found_or_skipped(SAMPLING)


@pytest.fixture(scope="module")
def small() -> GPT:
    return model("modern", 2, 24, n_head=2, n_embd=32, vocab_size=40)


def sampler(found: ctypes.CDLL, m: GPT, threads: int) -> Callable[[], list[int]]:
    """A function that samples the same text each time. Every thread takes part in every step."""
    one = Decoder(found, Weights.of(m), dtype="float32", streams=1, threads=threads)
    # For so small a network, the decoder's own `_team` would return only one thread.
    one._team = lambda streams: (threads, False)  # type: ignore[method-assign]
    one._thread_count.choose = lambda: threads  # type: ignore[method-assign]
    how = SamplingParamsStruct(temperature=1.0, top_p=1.0, min_p=0.0, penalty=1.0, top_k=0)
    uniform = [[(7 * i % STEPS + 0.5) / STEPS for i in range(STEPS)]]

    def sample() -> list[int]:
        one.feed([(0, 0, [1])])
        return one.run([0], [1], uniform, how)[0]

    return sample


def trainer(found: ctypes.CDLL, threads: int) -> Callable[[], list[torch.Tensor]]:
    """A function that computes the same gradients each time."""
    n = network(found, "modern", threads=threads, n_embd=32)
    idx, targets = batch(4, 32)

    def gradients() -> list[torch.Tensor]:
        n.engine.gradients(idx, targets, seed=0, scale=1.0 / idx.numel(), add=False)
        return list(n.gradients().values())

    return gradients


@contextmanager
def in_background(work: Callable[[], object]) -> Iterator[None]:
    """Repeats `work` in another thread."""
    ended = threading.Event()

    def repeat() -> None:
        while not ended.is_set():
            work()

    thread = threading.Thread(target=repeat)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def succeeds_in_a_fork(check: Callable[[], bool]) -> bool:
    """Whether `check` returns True in a fork of this process. A fork that hangs is killed."""
    pid = os.fork()
    if pid == 0:
        try:
            os._exit(0 if check() else 1)
        finally:
            os._exit(2)
    until = time.monotonic() + _SECONDS_FOR_A_CHILD
    while time.monotonic() < until:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status) == 0
        time.sleep(0.001)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return False


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_a_fork_during_a_run_can_sample(sampling: ctypes.CDLL, small: GPT, threads: int) -> None:
    busy, own = sampler(sampling, small, threads), sampler(sampling, small, 2)
    expected = own()
    with in_background(busy):
        for _ in range(20):
            assert succeeds_in_a_fork(lambda: own() == expected)
    assert own() == expected


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_a_fork_during_a_step_can_train(native_float32: ctypes.CDLL, threads: int) -> None:
    busy, own = trainer(native_float32, threads), trainer(native_float32, 2)
    expected = own()

    def same() -> bool:
        return all(map(torch.equal, own(), expected))

    with in_background(busy):
        for _ in range(20):
            assert succeeds_in_a_fork(same)
    assert same()


@pytest.mark.parametrize("threads", [1, 2])
def test_two_callers_at_once_get_what_each_gets_alone(
    sampling: ctypes.CDLL, small: GPT, threads: int
) -> None:
    other = sampler(sampling, model("gpt2", 2, 24, n_head=2, n_embd=32, vocab_size=40), threads)
    own = sampler(sampling, small, threads)
    expected = own()
    with in_background(other):
        assert all(own() == expected for _ in range(100))
