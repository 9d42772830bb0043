"""Writes the model card of an export: README.md with data, loss curve, sample, proof and limits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from gptcli import __version__
from gptcli.config_files import dump_config
from gptcli.errors import GptcliError
from gptcli.interop.loss_curve import loss_curve, recorded_losses
from gptcli.interop.proof import Proof
from gptcli.model.gpt import count_parameters
from gptcli.sampling.next_token import SamplingParams
from gptcli.sampling.text import generate_one
from gptcli.training.loading import Trained
from gptcli.training.training_state import progress_of

_SAMPLE_TOKENS = 300


def write(trained: Trained, folder: Path, proof: Proof, limits: Sequence[str]) -> None:
    """Write README.md, and loss.svg if the run has losses, into the folder of an export."""
    losses = recorded_losses(trained.run)
    has_curve = len(losses[0]) > 1
    if has_curve:
        (folder / "loss.svg").write_text(loss_curve(*losses), encoding="utf-8")
    text = "\n".join(_lines(trained, proof, limits, has_curve=has_curve))
    (folder / "README.md").write_text(text + "\n", encoding="utf-8")


def _lines(
    trained: Trained, proof: Proof, limits: Sequence[str], *, has_curve: bool
) -> Iterator[str]:
    config, name = trained.config, trained.run.resolve().name
    model_type = config.model.traits.model_type
    yield from ("---", "library_name: transformers", "pipeline_tag: text-generation", "tags:")
    yield from ("- gptcli", f"- {model_type}", "---", "", f"# {name}", "")
    size = count_parameters(trained.model).total
    texts = ", ".join(f"`{Path(source).name}`" for source in config.data.sources)
    yield f"A GPT with {size:,} parameters, trained on {texts} with gptcli {__version__}."
    yield from ("", "| | |", "|---|---|")
    for what, value in _facts(trained):
        yield f"| {what} | {value} |"
    if has_curve:
        yield from ("", "![loss during training](loss.svg)")
    yield from ("", "## Use it", "", "```python")
    yield "from transformers import pipeline"
    yield 'write = pipeline("text-generation", model="THIS FOLDER")'
    yield f"text = write({_prompt(trained)!r}, max_new_tokens=100)"
    yield 'print(text[0]["generated_text"])'
    yield "```"
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


def proof_sentence(proof: Proof) -> str:
    """What the proof showed, in a sentence."""
    if proof.largest_difference is None:
        package = "xllamacpp" if "xllamacpp" in proof.reader else "transformers"
        return (
            f"Nothing was proven: {proof.reader}. To prove it: pip install {package}; export again."
        )
    lengths = ", ".join(f"{length:,}" for length in proof.lengths)
    return (
        f"{proof.reader} read the export back. On prompts of {lengths} tokens, its "
        f"{'log-probabilities' if 'xllamacpp' in proof.reader else 'logits'} differ from gptcli's "
        f"by at most {proof.largest_difference:.1e}; the compared texts have the same tokens."
    )


def _facts(trained: Trained) -> Iterator[tuple[str, str]]:
    config = trained.config.model
    layers = f"{config.n_layer} layer" + ("s" if config.n_layer != 1 else "")
    heads = f"{config.n_head} head" + ("s" if config.n_head != 1 else "")
    yield "layout", f"`{config.arch}`: {layers}, {heads}"
    yield "width, context length", f"{config.n_embd}, {config.block_size} tokens"
    tokens = f"`{trained.tokenizer.kind}`, {trained.tokenizer.vocab_size:,} tokens"
    yield "tokenizer", tokens
    progress = progress_of(trained.meta)
    yield "checkpoint", f"step {trained.step:,}, {progress.tokens:,} tokens seen"
    if progress.val_loss is not None:
        yield "validation loss", f"{progress.val_loss:.4f} nats per token"


def _prompt(trained: Trained) -> str:
    """A short prompt that the tokenizer can encode."""
    tokenizer = trained.tokenizer
    with suppress(GptcliError):
        tokenizer.encode("The")
        return "The"
    return next((piece.decode() for piece in tokenizer.pieces if piece.isalpha()), "")


def _config_lines(trained: Trained) -> Iterator[str]:
    """The sections `model` and `train` of the config; the others name places of the machine."""
    inside = False
    for line in dump_config(trained.config).splitlines():
        if line and not line.startswith((" ", "#")):
            inside = line.split(":")[0] in ("model", "train")
        if inside:
            yield line
