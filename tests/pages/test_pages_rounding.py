"""The eight-bit weights of a page: they equal those of the C library exactly, and the page can
unpack them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from gptcli.pages.model_page.payload import _described, payload, read_payload, read_pieces, rounded
from gptcli.pages.model_page.rounding import GROUP, dequantised, quantised
from gptcli.tokenization.gpt2 import RANK_FILE
from tests.interop.models import KINDS, shape, tokenizer_of, trained

ROOT = Path(__file__).resolve().parents[2]

C_PROGRAM = """
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include "int8.h"

int main(void) { /* groups of 16 x 32 floats in; 512 bytes and 16 scales out */
    static float inputs[OUTPUTS][SCALE_GROUP];
    static uint8_t weights[OUTPUTS * SCALE_GROUP];
    static bf16 scales[OUTPUTS];
    while (fread(inputs, sizeof inputs, 1, stdin) == 1) {
        quantize_group(inputs, weights, scales);
        fwrite(weights, sizeof weights, 1, stdout);
        fwrite(scales, sizeof scales, 1, stdout);
    }
    return 0;
}
"""


def hard_weights() -> np.ndarray:  # type: ignore[type-arg]
    """Weights that are hard to round: float32 (N, 32), N groups of 32 weights.

    The groups have many magnitudes. Some groups hold zeros, tiny numbers, or numbers halfway
    between two integers."""
    rng = np.random.default_rng(3)
    weights = rng.standard_normal((640, GROUP)).astype(np.float32)
    weights *= 10.0 ** rng.integers(-12, 6, (640, 1)).astype(np.float32)
    weights[0] = 0
    weights[1] = 1e-31
    weights[2, 0] = 127
    # With the scale 1, these weights lie halfway between two integers, and must be rounded to the
    # even one.
    weights[2, 1:] = np.arange(31) + 0.5
    weights[3] = -weights[2]
    weights[4] = np.float32(1.0)
    return weights


@pytest.mark.skipif(sys.platform != "linux" or not shutil.which("cc"), reason="needs Linux and cc")
def test_the_numbers_are_those_of_sample_dtype_int8(tmp_path: Path) -> None:
    (tmp_path / "round.c").write_text(C_PROGRAM, encoding="utf-8")
    command = [
        "cc",
        "-O1",
        "-w",
        "-I",
        ROOT / "gptcli" / "native" / "sample",
        "-I",
        ROOT / "gptcli" / "native",
        "-o",
        tmp_path / "round",
    ]
    subprocess.run([*command, tmp_path / "round.c", "-lm"], check=True)
    weights = hard_weights()
    done = subprocess.run([tmp_path / "round"], input=weights.tobytes(), capture_output=True)
    packed = np.frombuffer(done.stdout, dtype=np.uint8).reshape(-1, 16 * GROUP + 32)
    # A panel of the C library holds the weights of 16 outputs. Each part of the panel is for four
    # inputs. It holds the four weights of output 0, then the four weights of output 1, and so on.
    bytes_ = packed[:, : 16 * GROUP].reshape(-1, GROUP // 4, 16, 4).transpose(0, 2, 1, 3)
    theirs = (bytes_.reshape(-1, GROUP).astype(np.int16) - 128).astype(np.int8)
    scales = np.ascontiguousarray(packed[:, 16 * GROUP :]).view(np.uint16).reshape(-1, 1)
    whole, ours = quantised(weights)
    assert (ours == scales).all()
    assert (whole == theirs).all()
    assert np.abs(whole).max() == 127


def test_a_weight_moves_by_half_a_step_at_most() -> None:
    weights = hard_weights()[3:]
    moved = np.abs(dequantised(*quantised(weights)) - weights)
    assert (moved <= np.abs(weights).max(axis=1, keepdims=True) / 127 * 0.51).all()


@pytest.mark.parametrize("seed", [1, 3])
def test_a_rounded_network_has_rounded_matrices_and_the_same_vectors(
    seed: int, tmp_path: Path
) -> None:
    model = trained(tmp_path / "run", "char", seed, **shape(seed, "modern")).model
    before = dict(model.named_parameters())
    for name, weights in rounded(model).named_parameters():
        if weights.dim() == 1:
            assert torch.equal(weights, before[name])
        else:
            assert not torch.equal(weights, before[name])
            assert (weights - before[name]).abs().max() <= before[name].abs().max() / 127 * 0.52


@pytest.mark.parametrize(
    "kind", [k if k != "gpt2" else pytest.param(k, marks=pytest.mark.slow) for k in KINDS]
)
def test_a_payload_holds_the_tokenizer(kind: str, tmp_path: Path) -> None:
    sizes = {"n_layer": 1, "n_head": 1, "n_embd": 2, "block_size": 4}
    model = trained(tmp_path / "run", kind, **sizes)
    header, sections = read_payload(payload(model.model, model.tokenizer))
    assert read_pieces(header, sections) == list(model.tokenizer.pieces)
    assert header["tokenizer"]["start"] == model.tokenizer.start_ids()


def test_gpt2s_vocabulary_takes_a_fifth_of_its_file() -> None:
    described, merges = _described(tokenizer_of("gpt2"))
    packed = len(zlib.compress(merges, 9)) + len(json.dumps(described))
    assert packed < (ROOT / "data" / RANK_FILE).stat().st_size / 5
