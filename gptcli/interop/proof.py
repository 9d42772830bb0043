"""Proves an export or import: another program computes the same logits and ids from the files.

Dimensions: T tokens, V vocabulary, W window (block_size).
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import tokenizers
import torch
from torch import Tensor

from gptcli.errors import GptcliError
from gptcli.interop import gguf_file, llama_cpp, onnx_folder
from gptcli.model.gpt import GPT
from gptcli.plurals import counted
from gptcli.tokenization import Tokenizer
from gptcli.training.loading import Trained

TOLERANCE = 1e-3
"""The largest difference that rounding can cause between the logits of two programs, if no logit is
above 10 or below -10."""

Doing = Literal["export", "import"]

_TEXTS = (
    "To be, or not to be, that is the question.\n",
    "  two  spaces, a tab\tand\r\nline ends\n\n",
    "naïve façade, größer, 你好, привет, مرحبا, 🙂🙃",
    "<|endoftext|> as a text",
    "x = 3.14159 * r**2  # don't\n",
    "",
)


@dataclass(frozen=True)
class Proof:
    """The result of comparing gptcli with the program that reads the exported or imported files.

    The logits of the two programs (for GGUF, their log-probabilities) differ by at most
    `largest_difference`. It is None if nothing was compared. `lengths` are the lengths of the
    prompts in tokens. `reader` is the name of the other program with its version, or the reason why
    nothing was compared. If `texts` is true, both tokenizers encoded a few texts equally."""

    largest_difference: float | None
    lengths: tuple[int, ...]
    reader: str
    texts: bool = True


@torch.no_grad()
def prove(
    trained: Trained,
    logits_of: Callable[[Tensor], Tensor],
    reader: str,
    *,
    past_window: bool,
    doing: Doing = "export",
) -> Proof:
    """Compare `logits_of` (int64 (1, T) -> (1, T, V)) with gptcli's model on some fixed prompts.

    If `past_window` is true, one of the prompts is longer than the window. Raises GptcliError (exit
    code 1) if a logit differs by more than rounding can cause."""
    window = trained.config.model.block_size
    lengths = sorted({1, min(3, window), max(1, window // 2), window})
    lengths += [window + min(window, 50) + 3] if past_window else []
    largest = 0.0
    for length, idx in zip(lengths, _prompts(trained.tokenizer, lengths), strict=True):
        ours, theirs = our_logits(trained.model, idx), logits_of(idx).float()
        difference = float((ours - theirs).abs().max())
        if not difference <= TOLERANCE * max(1.0, float(ours.abs().max()) / 10):
            raise GptcliError(
                f"the {doing} was not kept: {reader} computes other logits from it (for a prompt "
                f"of {counted(length, 'token')}, they differ by {difference:.2g})",
                "this is a fault of gptcli or of the other program: please report it",
                exit_code=1,
            )
        largest = max(largest, difference)
    return Proof(largest, tuple(lengths), reader)


@torch.no_grad()
def our_logits(model: GPT, idx: Tensor) -> Tensor:
    """The logits of gptcli's model for a text: int64 (1, T) -> float32 (1, T, V).

    Each token attends to itself and the W - 1 tokens before it. With learned positions, the text
    can have at most W tokens."""
    window = model.config.block_size
    if idx.shape[1] <= window:
        logits: Tensor = model(idx)
        return logits.float()
    cache = model.new_cache(1)
    parts = [model(piece, cache=cache) for piece in torch.split(idx, window, dim=1)]
    return torch.cat(parts, dim=1).float()


def same_ids(
    tokenizer: Tokenizer,
    encode: Callable[[str], list[int]],
    reader: str,
    doing: Doing = "export",
) -> None:
    """Compare the token ids of a few texts. Raises GptcliError (exit code 1) if any ids differ."""
    for text in _texts_for(tokenizer):
        if encode(text) != [*tokenizer.prefix, *_ids(tokenizer, text)]:
            raise GptcliError(
                f"the {doing} was not kept: {reader} gives other token ids for {text[:40]!r}",
                "this is a fault of gptcli or of the other program: please report it",
                exit_code=1,
            )


def hugging_face(
    trained: Trained, folder: Path, *, doing: Doing = "export", with_texts: bool = True
) -> Proof:
    """Prove an exported or imported Hugging Face folder: transformers must give the same logits.

    If `with_texts` is true, token ids are compared, too. If transformers cannot be imported, the
    Proof has the reason."""
    with _quiet_and_offline():
        try:
            import transformers
            from transformers import AutoModelForCausalLM, AutoTokenizer
        except Exception as error:  # a broken installation can raise any error
            if isinstance(error, ModuleNotFoundError) and error.name == "transformers":
                return Proof(None, (), "transformers is not installed")
            return Proof(None, (), f"transformers cannot be imported: {error}")
        reader = f"transformers {transformers.__version__}"
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        if with_texts:
            tokenizer = AutoTokenizer.from_pretrained(folder)
            same_ids(
                trained.tokenizer, lambda text: list(tokenizer(text)["input_ids"]), reader, doing
            )
        with torch.no_grad():
            found = prove(
                trained,
                lambda idx: model(idx).logits,
                reader,
                past_window=_has_window(model.config, trained.config.model.block_size),
                doing=doing,
            )
        return replace(found, texts=with_texts)


def _has_window(theirs: Any, block_size: int) -> bool:
    """Whether `theirs`, a transformers config, gives all layers a window of `block_size` tokens."""
    kinds = getattr(theirs, "layer_types", None) or ["sliding_attention"]
    window = getattr(theirs, "sliding_window", None)
    return window == block_size and set(kinds) == {"sliding_attention"}


def adapter(trained: Trained, base: Path, folder: Path, *, doing: Doing = "export") -> Proof:
    """Prove the adapter in `folder` on the base model in `base`, if peft is installed.

    The logits must be equal to those of gptcli's model with the adapters merged. No token ids are
    compared. Use `hugging_face` to prove the base model without the adapter."""
    with _quiet_and_offline(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft warns about transformers
        try:
            import peft
            import transformers
        except Exception as error:  # a broken installation can raise any error
            if isinstance(error, ModuleNotFoundError) and error.name == "peft":
                return Proof(None, (), "peft is not installed")
            return Proof(None, (), f"peft cannot be imported: {error}")
        model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        adapted = peft.PeftModel.from_pretrained(model, folder).eval()
        with torch.no_grad():
            found = prove(
                trained,
                lambda idx: adapted(idx).logits,
                f"peft {peft.__version__} on transformers {transformers.__version__}",
                past_window=trained.config.model.traits.model_type == "qwen3",
                doing=doing,
            )
        return replace(found, texts=False)


def onnx(trained: Trained, folder: Path) -> Proof:
    """Prove a folder with ONNX files, by onnxruntime if it is installed.

    The model without a cache reads each prompt. The model with a cache reads each prompt in one
    call, in pieces and in a batch. Raises GptcliError (exit code 1) if a file breaks ONNX's rules,
    or if onnxruntime cannot load a file or computes something else."""
    _valid_onnx(folder)
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    try:
        import onnxruntime
    except Exception as error:  # a broken installation can raise any error
        if isinstance(error, ModuleNotFoundError) and error.name == "onnxruntime":
            return Proof(None, (), "onnxruntime is not installed")
        return Proof(None, (), f"onnxruntime cannot be imported: {error}")
    from gptcli.interop import onnx_runtime

    reader = f"onnxruntime {onnxruntime.__version__}"
    same_ids(trained.tokenizer, lambda text: list(tokenizer.encode(text).ids), reader)
    config = trained.config.model
    try:
        text_model = onnx_runtime.TextModel(folder / onnx_folder.WITHOUT_CACHE)
        cached = onnx_runtime.CachedModel(folder / onnx_folder.WITH_CACHE)
    except Exception as error:  # onnxruntime's errors have no common class
        raise GptcliError(
            f"the export was not kept: {reader} cannot load it: {' '.join(str(error).split())}",
            "this is a fault of gptcli or of the other program: please report it",
            exit_code=1,
        ) from None
    ways: tuple[Callable[[Tensor], Tensor], ...] = (
        text_model.logits,
        cached.in_one_call,
        lambda idx: cached.in_pieces(idx, config.block_size),
        cached.in_batch,
    )
    past_window = config.traits.positions == "rotary"
    found = [prove(trained, way, reader, past_window=past_window) for way in ways]
    return max(found, key=lambda one: one.largest_difference or 0.0)


def _valid_onnx(folder: Path) -> None:
    """Raise GptcliError (exit code 1) if one of the two files breaks a rule of ONNX."""
    import onnx

    for name in (onnx_folder.WITH_CACHE, onnx_folder.WITHOUT_CACHE):
        try:
            onnx.checker.check_model(str(folder / name), full_check=True)
        except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
            words = " ".join(str(error).split())
            raise GptcliError(
                f"the export was not kept: {name} breaks a rule of ONNX: {words}",
                "this is a fault of gptcli or of the package onnx: please report it",
                exit_code=1,
            ) from None


_GGUF_TOLERANCE = {"f32": 0.02, "f16": 0.1, "bf16": 0.5, "q8_0": 1.0}
"""Type of the matrices -> the largest difference of log-probabilities that this type can cause. f32
needs a tolerance, too, because llama.cpp computes GELU from a 16-bit table."""
_LEAST_LOG_PROBABILITY = -15.0  # llama.cpp computes smaller ones too inexactly to compare


def gguf(trained: Trained, path: Path, type_name: str) -> Proof:
    """Prove a GGUF file: read its tensors again, and run it in llama.cpp if that is installed.

    `largest_difference` of the result is the largest difference between the log-probabilities that
    gptcli and llama.cpp give to the same token after the same prompt. Raises GptcliError (exit code
    1) if a tensor or a log-probability differs too much, or if llama.cpp cannot run the file."""
    _same_tensors(trained, path, type_name)
    if not llama_cpp.is_installed():
        return Proof(None, (), "llama.cpp (the package xllamacpp) is not installed")
    window, tokenizer = trained.config.model.block_size, trained.tokenizer
    letters = [i for i, p in enumerate(tokenizer.pieces) if p.isalpha() and p.isascii()]
    if not letters:
        return Proof(
            None, (), "llama.cpp gives no probabilities, because no token consists of ASCII letters"
        )
    lengths = sorted({1, min(3, window), max(1, window // 2), max(1, window - 1)})
    prompts = [idx[0].tolist() for idx in _prompts(tokenizer, lengths)]
    texts = [text for text in _texts_for(tokenizer) if 0 < len(tokenizer.encode(text)) < window]
    reader = f"llama.cpp (xllamacpp {llama_cpp.version()})"
    answer = llama_cpp.ask(path, prompts, texts, tokenizer.vocab_size, letters[0])
    if answer is None:
        raise GptcliError(
            f"the export was not kept: {reader} cannot run it",
            "this is a fault of gptcli or of the other program: please report it",
            exit_code=1,
        )
    largest = 0.0
    for ids, theirs in zip(prompts, answer.log_probabilities, strict=True):
        logits = our_logits(trained.model, torch.tensor([ids]))[0, -1]
        ours = torch.log_softmax(logits.double(), dim=-1).tolist()
        if len(theirs) != len(ours):
            raise GptcliError(
                f"the export was not kept: {reader} gives "
                f"{counted(len(theirs), 'probability', 'probabilities')} for "
                f"{counted(len(ours), 'token')}",
                "this is a fault of gptcli or of the other program: please report it",
                exit_code=1,
            )
        seen = [i for i, value in enumerate(ours) if value > _LEAST_LOG_PROBABILITY]
        largest = max(largest, *(abs(ours[i] - theirs[i]) for i in seen))
    counts = [len(tokenizer.prefix) + len(_ids(tokenizer, text)) for text in texts]
    if not largest <= _GGUF_TOLERANCE[type_name] or counts != answer.counts:
        raise GptcliError(
            f"the export was not kept: {reader} computes something else from it (log-probabilities "
            f"differ by {largest:.2g}; texts of {counts} tokens have {answer.counts} there)",
            "this is a fault of gptcli or of the other program: please report it",
            exit_code=1,
        )
    return Proof(largest, tuple(lengths), reader)


_TENSOR_TOLERANCE = {"f32": 0.0, "f16": 2**-10, "bf16": 2**-7, "q8_0": 2**-6}
"""Type of the matrices -> the largest allowed error of a number, relative to the largest number of
its tensor."""


def _same_tensors(trained: Trained, path: Path, type_name: str) -> None:
    """Compare all tensors in the GGUF file at `path` with the tensors of the model.

    Raises GptcliError (exit code 1) if a tensor differs by more than rounding can cause."""
    stored = dict(gguf_file.read_tensors(path))
    for name, tensor in gguf_file.named_tensors(trained):
        error = (stored.pop(name) - tensor).abs().max()
        if not error <= _TENSOR_TOLERANCE[type_name] * tensor.abs().max():
            raise GptcliError(
                f"the export was not kept: `{name}` reads back with an error of {float(error):.2g}",
                "this is a fault of gptcli or of the package gguf: please report it",
                exit_code=1,
            )
    assert not stored


def _prompts(tokenizer: Tokenizer, lengths: list[int]) -> Iterator[Tensor]:
    """Yield random token ids of each length, the same in every call: int64 (1, T)."""
    generator = torch.Generator().manual_seed(20_000)
    for length in lengths:
        yield torch.randint(0, tokenizer.vocab_size, (1, length), generator=generator)


def _texts_for(tokenizer: Tokenizer) -> Iterator[str]:
    """Texts that the tokenizer can encode: fixed texts, and texts of random tokens."""
    generator = torch.Generator().manual_seed(20_001)
    drawn = torch.randint(0, tokenizer.vocab_size, (8, 40), generator=generator)
    # Leave out special tokens, because the other program does not encode their names as text.
    names = {*tokenizer.special_ids} - ({tokenizer.eot} if tokenizer.reads_end_of_text else set())
    rows = ([id for id in row if id not in names] for row in drawn.tolist())
    for text in (*_TEXTS, *(tokenizer.decode(row) for row in rows)):
        with contextlib.suppress(GptcliError):
            _ids(tokenizer, text)
            yield text


def _ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """The ids that the other program should give.

    If the end-of-text token is named `<|endoftext|>`, the other program encodes this name in a text
    as the end-of-text token."""
    return tokenizer.encode(text, allow_eot=tokenizer.reads_end_of_text)


@contextlib.contextmanager
def _quiet_and_offline() -> Iterator[None]:
    """Let the Hugging Face libraries print nothing and use no network inside the `with` block."""
    wanted = {
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TRANSFORMERS_VERBOSITY": "error",
    }
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
