"""Runs a GGUF file in llama.cpp (package xllamacpp), in a separate process, for the proof.

llama.cpp ends its process if it cannot load a file, so it must not run in gptcli's process. The
separate process reads a request in JSON from standard input, and writes its answer to the file that
the request names.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

_SECONDS = 300


@dataclass(frozen=True)
class Answer:
    """What llama.cpp computed.

    `log_probabilities` has a dict for each prompt: {token id: log-probability that this token
    follows the prompt}. `counts` has the number of tokens of each text."""

    log_probabilities: list[dict[int, float]]
    counts: list[int]


def is_installed() -> bool:
    """Whether the package xllamacpp is installed."""
    return find_spec("xllamacpp") is not None


def version() -> str:
    """The version of xllamacpp."""
    from importlib.metadata import version as version_of

    return version_of("xllamacpp")


def ask(
    path: Path, prompts: Sequence[Sequence[int]], texts: Sequence[str], vocab_size: int, letter: int
) -> Answer | None:
    """What llama.cpp computes for prompts of token ids and for texts; None if its process failed.

    The process counts as failed if it takes longer than five minutes. `letter` is the id of a token
    of ASCII letters. llama.cpp is made to choose this token after each prompt, because it gives no
    probabilities if it chooses a token that is only a part of a character."""
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder, "answer.json")
        request = {
            "model": str(path),
            "answer": str(answer),
            "prompts": [list(ids) for ids in prompts],
            "texts": list(texts),
            "vocab_size": vocab_size,
            "letter": letter,
        }
        try:
            subprocess.run(
                [sys.executable, "-m", "gptcli.interop.llama_cpp"],
                input=json.dumps(request),
                text=True,
                capture_output=True,
                timeout=_SECONDS,
                check=True,
            )
            stored = json.loads(answer.read_text("utf-8"))
        except (subprocess.SubprocessError, OSError, ValueError):
            return None
    found = [{int(id): value for id, value in one} for one in stored["log_probabilities"]]
    return Answer(found, stored["counts"])


def _main() -> None:
    import xllamacpp

    request = json.loads(sys.stdin.read())
    params = xllamacpp.CommonParams()
    params.model.path = request["model"]
    longest = max(map(len, request["prompts"]), default=1)
    params.n_ctx = max(longest + 8, 256)
    params.n_parallel = 1
    params.warmup = False
    # With flash attention or a 16-bit cache, the differences from gptcli are a thousand times as
    # large.
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    server = xllamacpp.Server(params)

    def complete(prompt: Any) -> Any:
        asked = {
            "prompt": prompt,
            "n_predict": 1,
            "n_probs": request["vocab_size"],
            "temperature": 0.0,
            "cache_prompt": False,
            "logit_bias": [[request["letter"], 1e4]],
        }
        told = server.handle_completions(asked)
        return told if isinstance(told, dict) else json.loads(told)

    answer: dict[str, Any] = {"log_probabilities": [], "counts": []}
    for ids in request["prompts"]:
        (first,) = complete(ids)["choices"][0]["logprobs"]["content"]
        found = [(one["id"], one["logprob"]) for one in first["top_logprobs"]]
        answer["log_probabilities"].append(found)
    for text in request["texts"]:
        answer["counts"].append(complete(text)["usage"]["prompt_tokens"])
    Path(request["answer"]).write_text(json.dumps(answer), encoding="utf-8")


if __name__ == "__main__":
    _main()
