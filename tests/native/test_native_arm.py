"""The training library for aarch64, built by a cross compiler and run in an emulator."""

from __future__ import annotations

import ctypes
import platform
import shutil
import subprocess
from array import array
from pathlib import Path

import numpy as np
import pytest
import torch

from gptcli.model.parameters import names_by_place
from gptcli.native import library
from gptcli.native.engine import Arrays, muon, shape_of
from tests.native.native_models import batch, network

COMPILER, EMULATOR = "aarch64-linux-gnu-gcc", "qemu-aarch64"
HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The beginning of a command line: the emulator, and the compiled step_on_arm.c."""
    for tool in (COMPILER, EMULATOR):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed (packages gcc-aarch64-linux-gnu, qemu-user)")
    if platform.machine() == "aarch64":
        pytest.skip("this is aarch64: the other tests run the library itself")
    path = tmp_path_factory.mktemp("arm") / "step"
    flags = ("-O2", "-static", "-std=gnu11", "-pthread", "-DBFLOAT16=0", "-w")
    folder = library._HERE / "train"
    words = [COMPILER, *flags, f"-I{folder}", "-o", str(path), str(HERE / "step_on_arm.c"), "-lm"]
    subprocess.run(words, check=True)
    return [EMULATOR, str(path)]


@pytest.mark.parametrize("arch", ["gpt2", "modern"])
def test_neon_computes_what_this_processor_computes(
    arch: str, program: list[str], native_float32: ctypes.CDLL, tmp_path: Path
) -> None:
    V, B, T = 70, 2, 45
    sizes = {"n_embd": 64, "n_head": 4, "dropout": 0.1}
    n = network(native_float32, arch, vocab_size=V, most_tokens=B * T, threads=2, **sizes)
    idx, targets = batch(B, T, V)
    loss = n.engine.gradients(idx, targets, seed=7, scale=1.0 / idx.numel(), add=False)
    weights, gradients, offsets = n.weights.flat()
    names = names_by_place(n.model.config.n_layer, offsets)
    places = array("q", [-1 if name is None else offsets[name] for name in names])
    generator = torch.Generator().manual_seed(3)
    matrix, grad = (
        torch.randn(37, 70, generator=generator),
        torch.randn(37, 70, generator=generator),
    )
    with (tmp_path / "in").open("wb") as file:
        file.write(bytes(shape_of(n.model.config, V, B * T, 2)))
        file.write(array("q", [len(places), len(weights), B, T, *matrix.shape]).tobytes())
        file.write(places.tobytes())
        for tensor in (weights, idx, targets, matrix, grad):
            file.write(tensor.numpy().tobytes())
    done = subprocess.run(
        [*program, tmp_path / "in", tmp_path / "out"], check=True, capture_output=True, text=True
    )
    assert done.stdout == "neon\n"
    told = (tmp_path / "out").read_bytes()
    assert np.frombuffer(told[:8], np.float64)[0] == pytest.approx(loss, rel=1e-6)
    numbers = torch.from_numpy(np.frombuffer(told[8:], np.float32).copy())
    found, moved = numbers[: len(weights)], numbers[len(weights) :].view(matrix.shape)
    largest = max(float(g.norm()) for g in n.gradients().values())
    for name, g in n.gradients().items():
        theirs = found[offsets[name] :][: g.numel()].view(g.shape)
        assert (theirs - g).norm() <= 3e-6 * g.norm() + 1e-7 * largest, name
    momentum = torch.zeros_like(matrix)
    arrays = Arrays([matrix], [grad], [momentum])
    muon(native_float32, 2, arrays, rate=0.1, momentum=0.9, decay=0.5, iterations=5)
    torch.testing.assert_close(moved, matrix, rtol=1e-4, atol=1e-5)
    assert len(gradients) == len(weights)
