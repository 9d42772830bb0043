"""Compares the sampling speed of gptcli and llama.cpp at the same precision. Both run in turn.

    python benchmarks/against_llama_cpp.py --llama-cpp ../llama.cpp

Both compute GPT-2's architecture with random weights, in one stream from an empty context. The
result is new tokens per second. gptcli also chooses each token; `llama-bench` (tg) does not.
llama.cpp is the user's checkout of https://github.com/ggml-org/llama.cpp. Build it first: `cmake -B
build && cmake --build build --target llama-bench`. The package `gguf` of this checkout writes the
weights.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from sampling import SHAPES, other

PRECISIONS = (("float32", "F32"), ("bfloat16", "BF16"), ("int8", "Q8_0"))
NEW = {"0.8 M": 64, "10.65 M": 250, "124 M": 100}  # tokens to generate: at most the context length


def main() -> None:
    """Read the command line, run gptcli and llama.cpp in turn, print a table of their speeds."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--llama-cpp", type=Path, required=True, help="a built checkout")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=SHAPES, help="a shape")
    parser.add_argument("--threads", type=int, default=2)
    asked = parser.parse_args()
    print("| shape | precision | llama.cpp | gptcli | gptcli / llama.cpp |\n|---|---|---|---|---|")
    for shape in [asked.only] if asked.only else SHAPES:
        for dtype, kind in PRECISIONS:
            with tempfile.TemporaryDirectory() as folder:
                weights = Path(folder) / "random.gguf"
                write_gguf(weights, SHAPES[shape], kind, asked.llama_cpp)
                pairs = [
                    (
                        theirs(weights, NEW[shape], asked.llama_cpp, asked.threads),
                        ours(shape, dtype),
                    )
                    for _ in range(asked.rounds)
                ]
            peer, mine = (statistics.median(side) for side in zip(*pairs, strict=True))
            ratio = statistics.median(b / a for a, b in pairs)
            print(f"| {shape} | {dtype} | {peer:,.0f} | {mine:,.0f} | {ratio:.2f} |", flush=True)


def ours(shape: str, dtype: str) -> float:
    """New tokens per second of gptcli, in a separate process."""
    case = {"shape": shape, "streams": 1, "new": NEW[shape] - 1, "side": "gptcli", "arch": "gpt2"}
    return other({**case, "dtype": dtype, "bias": True}, Path())


def theirs(weights: Path, new: int, llama_cpp: Path, threads: int) -> float:
    """New tokens per second of llama-bench."""
    words = [str(llama_cpp / "build" / "bin" / "llama-bench"), "-m", str(weights), "-p", "0",
             "-n", str(new), "-r", "3", "-t", str(threads), "-o", "json"]  # fmt: skip
    told = subprocess.run(words, check=True, capture_output=True).stdout
    return float(json.loads(told)[0]["avg_ts"])


def write_gguf(path: Path, sizes: dict[str, int], kind: str, llama_cpp: Path) -> None:
    """Write a GPT-2 with random weights as a GGUF file.

    `sizes` is the shape of the network. `kind` is the precision of its matrices. The position
    embeddings, the gains and the biases are always float32."""
    sys.path.insert(0, str(llama_cpp / "gguf-py"))
    import gguf  # type: ignore[import-not-found]
    import numpy as np

    writer: Any = gguf.GGUFWriter(path, "gpt2")
    layers, C, V = sizes["n_layer"], sizes["n_embd"], sizes["vocab"]
    writer.add_block_count(layers)
    writer.add_context_length(sizes["block_size"])
    writer.add_embedding_length(C)
    writer.add_feed_forward_length(4 * C)
    writer.add_head_count(sizes["n_head"])
    writer.add_layer_norm_eps(1e-5)
    writer.add_vocab_size(V)
    writer.add_tokenizer_model("none")
    chance = np.random.default_rng(0)
    stored = gguf.GGMLQuantizationType[kind]

    def add(name: str, *shape: int, plain: bool = False) -> None:
        data = (chance.standard_normal(shape) * 0.02).astype(np.float32)
        if len(shape) < 2 or plain:
            writer.add_tensor(f"{name}", data)
        else:
            writer.add_tensor(name, gguf.quantize(data, stored), raw_dtype=stored)

    add("token_embd.weight", V, C)
    add("position_embd.weight", sizes["block_size"], C, plain=True)
    for name, *shape in (
        ("attn_norm", C), ("attn_qkv", 3 * C, C), ("attn_output", C, C),
        ("ffn_norm", C), ("ffn_up", 4 * C, C), ("ffn_down", C, 4 * C),
    ):  # fmt: skip
        for i in range(layers):
            add(f"blk.{i}.{name}.weight", *shape)
            add(f"blk.{i}.{name}.bias", shape[0])
    for part in ("weight", "bias"):
        add(f"output_norm.{part}", C)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main()
