"""Writes an export's model card: README.md with data, loss curve, sample, proof and limits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from gptcli import __version__
from gptcli.config_files import dump_config
from gptcli.errors import GptcliError
from gptcli.interop.loss_curve import loss_curve, recorded_losses
from gptcli.interop.proof import Doing, Proof
from gptcli.model.gpt import count_parameters
from gptcli.plurals import agreeing, counted
from gptcli.sampling.next_token import SamplingParams
from gptcli.sampling.streams import window_stride
from gptcli.sampling.text import generate_one
from gptcli.training.loading import Trained
from gptcli.training.run_folder import read_status
from gptcli.training.training_state import progress_of

_SAMPLE_TOKENS = 300
_TEMPERATURE = SamplingParams().temperature


def write(trained: Trained, folder: Path, to: str, proof: Proof, limits: Sequence[str]) -> None:
    """Write README.md, and loss.svg if the run has losses, into the folder of an export.

    `to` is the format, "huggingface" or "onnx". If the folder contains an adapter for peft, the
    card is about the model with this adapter."""
    adapter = (folder / "adapter" / "adapter_config.json").is_file()
    losses = recorded_losses(trained.run)
    has_curve = len(losses[0]) > 1
    if has_curve:
        (folder / "loss.svg").write_text(loss_curve(*losses), encoding="utf-8")
    text = "\n".join(_lines(trained, to, proof, limits, has_curve=has_curve, adapter=adapter))
    (folder / "README.md").write_text(text + "\n", encoding="utf-8")


def _lines(
    trained: Trained,
    to: str,
    proof: Proof,
    limits: Sequence[str],
    *,
    has_curve: bool,
    adapter: bool,
) -> Iterator[str]:
    config, name = trained.config, trained.run.resolve().name
    model_type = config.model.traits.model_type
    library = "transformers.js" if to == "onnx" else "transformers"
    yield from ("---", f"library_name: {library}", "pipeline_tag: text-generation", "tags:")
    yield from ("- gptcli", f"- {model_type}", *(["- onnx"] if to == "onnx" else []))
    yield from ("---", "", f"# {name}", "")
    size = count_parameters(trained.model).total
    texts = ", ".join(f"`{Path(source).name}`" for source in config.data.sources)
    if config.data.shares is not None:
        texts = f"a mixture ({config.data.described})"
    imported = read_status(trained.run).get("imported")
    if isinstance(imported, dict):
        yield f"A GPT with {size:,} parameters, `{imported.get('from')}`, imported by gptcli."
    else:
        yield f"A GPT with {size:,} parameters, trained on {texts} with gptcli {__version__}."
    if adapter:
        yield "This folder holds the base model. The folder `adapter` holds what was fine-tuned."
    yield from ("", "| | |", "|---|---|")
    for what, value in _facts(trained):
        yield f"| {what} | {value} |"
    if has_curve:
        yield from ("", "![loss during training](loss.svg)")
    yield from ("", "## Use it", "")
    yield from (
        _onnx_usage(trained) if to == "onnx" else _hugging_face_usage(trained, adapter=adapter)
    )
    sample = generate_one(
        trained.model,
        trained.tokenizer,
        "",
        max_new_tokens=_SAMPLE_TOKENS,
        params=SamplingParams(),
        seed=0,
    )
    yield from (
        "",
        "## What it writes",
        "",
        *(f"    {line}" for line in (sample or "").split("\n")),
    )
    yield from ("", "## The export", "", proof_sentence(proof))
    yield from limits
    yield from ("", "## Config", "", "```yaml", *_config_lines(trained), "```")


def _hugging_face_usage(trained: Trained, *, adapter: bool) -> Iterator[str]:
    if adapter:
        yield from ("```python", "from peft import PeftModel")
        yield from ("from transformers import AutoModelForCausalLM, AutoTokenizer", "")
        yield 'folder = "THIS FOLDER"'
        yield "model = AutoModelForCausalLM.from_pretrained(folder)"
        yield 'model = PeftModel.from_pretrained(model, f"{folder}/adapter")'
        yield "tokenizer = AutoTokenizer.from_pretrained(folder)"
        yield f'ids = tokenizer({_prompt(trained)!r}, return_tensors="pt")'
        yield "print(tokenizer.decode(model.generate(**ids, max_new_tokens=100)[0]))"
        yield "```"
        return
    yield from ("```python", "from transformers import pipeline")
    yield 'write = pipeline("text-generation", model="THIS FOLDER")'
    yield f"text = write({_prompt(trained)!r}, max_new_tokens=100)"
    yield 'print(text[0]["generated_text"])'
    yield "```"


def _onnx_usage(trained: Trained) -> Iterator[str]:
    """The lines of a Python program that continues a prompt, also past the end of the window."""
    config = trained.config.model
    learned = config.traits.positions == "learned"
    first = " - start" if learned else ""
    yield from ("```python", "import numpy as np", "import onnxruntime")
    yield from ("from tokenizers import Tokenizer", "", 'folder = "THIS FOLDER"')
    yield from (f"temperature = {_TEMPERATURE}", "rng = np.random.default_rng(0)")
    yield 'tokenizer = Tokenizer.from_file(f"{folder}/tokenizer.json")'
    yield 'session = onnxruntime.InferenceSession(f"{folder}/onnx/model.onnx")'
    yield "empty = {"
    yield "    put.name: np.zeros((1, put.shape[1], 0, put.shape[3]), np.float32)"
    yield '    for put in session.get_inputs() if put.name.startswith("past_key_values")'
    yield from ("}", f"ids = tokenizer.encode({_prompt(trained)!r}).ids")
    yield f"cache, read{', start' if learned else ''} = empty, 0{', 0' if learned else ''}"
    yield "for _ in range(100):"
    if learned:
        yield f"    while len(ids) - start > {config.block_size}:  # the window is full"
        yield f"        start += {window_stride(config.block_size)}"
        yield "        cache, read = empty, start"
    yield '    kept = cache["past_key_values.0.key"].shape[2]'
    yield "    logits, *present = session.run(None, {"
    yield '        "input_ids": np.array([ids[read:]], np.int64),'
    yield (
        f'        "position_ids": np.arange(read{first}, len(ids){first}, dtype=np.int64)[None],'
    )
    yield '        "attention_mask": np.ones((1, kept + len(ids) - read), np.int64),'
    yield from ("        **cache,", "    })", "    read = len(ids)")
    if learned:
        yield "    cache = dict(zip(cache, present))"
    else:
        width = max(1, config.block_size - 1)  # how many earlier tokens a token attends to
        yield f"    cache = {{name: part[:, :, -{width}:] for name, part in zip(cache, present)}}"
    yield "    chances = np.exp((logits[0, -1] - logits[0, -1].max()) / temperature)"
    yield "    ids.append(int(rng.choice(len(chances), p=chances / chances.sum())))"
    yield from ("print(tokenizer.decode(ids))", "```")


def proof_sentence(proof: Proof, doing: Doing = "export") -> str:
    """One or two sentences that tell the user the result of `proof`."""
    if proof.largest_difference is None:
        nothing = f"Nothing was proven: {proof.reader}."
        packages = ("transformers", "xllamacpp", "onnxruntime", "peft")
        if not proof.reader.endswith("is not installed"):
            return nothing
        missing = next(name for name in packages if name in proof.reader)
        return f"{nothing} For a proof: pip install {missing}; {doing} again."
    lengths = ", ".join(f"{length:,}" for length in proof.lengths)
    tokens = agreeing(proof.lengths[-1], "token")
    done = "read the export back" if doing == "export" else "read the same files"
    numbers, ids = "logits", "ids"
    if "xllamacpp" in proof.reader:
        numbers, ids = "log-probabilities", "number of ids"
    same = f"; the tokenizers give the same {ids} for the compared texts" if proof.texts else ""
    return (
        f"{proof.reader} {done}. On prompts of {lengths} {tokens}, its {numbers} differ from "
        f"gptcli's by at most {proof.largest_difference:.1e}{same}."
    )


def _facts(trained: Trained) -> Iterator[tuple[str, str]]:
    config = trained.config.model
    layers, heads = counted(config.n_layer, "layer"), counted(config.n_head, "head")
    yield "layout", f"`{config.arch}`: {layers}, {heads}"
    length = config.block_size
    yield "width, context length", f"{config.n_embd}, {length} {agreeing(length, 'token')}"
    tokens = f"`{trained.tokenizer.kind}`, {counted(trained.tokenizer.vocab_size, 'token')}"
    yield "tokenizer", tokens
    progress = progress_of(trained.meta)
    yield "checkpoint", f"step {trained.step:,}, {counted(progress.tokens, 'token')} seen"
    if progress.val_loss is not None:
        yield "validation loss", f"{progress.val_loss:.4f} nats per token"


def _prompt(trained: Trained) -> str:
    """A short prompt that the tokenizer can encode: "The", or a token of letters, or any token."""
    letters_first = sorted(trained.tokenizer.pieces, key=lambda piece: not piece.isalpha())
    for text in (b"The", *letters_first):
        with suppress(GptcliError, UnicodeDecodeError):
            if trained.tokenizer.encode(text.decode()):
                return text.decode()
    return ""


def _config_lines(trained: Trained) -> Iterator[str]:
    """The config's sections `model` and `train`. Other sections can name private folders."""
    inside = False
    for line in dump_config(trained.config).splitlines():
        if line and not line.startswith((" ", "#")):
            inside = line.split(":")[0] in ("model", "train")
        if inside:
            yield line
