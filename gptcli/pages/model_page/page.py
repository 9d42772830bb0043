"""Builds the page of a run, proves that it computes what the network computes, and writes it.
A page of more than 20 MB raises an error, and a page of more than 5 MB gets a note.
"""

from __future__ import annotations

import contextlib
import html
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from gptcli import __version__
from gptcli.corpus import windows
from gptcli.errors import GptcliError
from gptcli.files.paths import shell_word
from gptcli.model.gpt import GPT
from gptcli.pages.inlining import Page, asset, document, json_block
from gptcli.pages.model_page import proof
from gptcli.pages.model_page.payload import payload, rounded
from gptcli.pages.model_page.programs import Program
from gptcli.pages.model_page.proof import Proof, RoundingError
from gptcli.pages.model_page.runtime_files import view_script, worker_script
from gptcli.pages.model_page.story import (
    Story,
    curve,
    curve_words,
    how_it_learned,
    story_of,
    text_size,
)
from gptcli.pages.written import write
from gptcli.plurals import counted
from gptcli.sampling.next_token import SamplingParams
from gptcli.sampling.text import generate_one
from gptcli.training.loading import Trained
from gptcli.training.opening_text import open_text_of_run
from gptcli.training.text_of_run import WantedText, content_key_of

LARGE, TOO_LARGE = 5_000_000, 20_000_000  # bytes of a page
_COMPARED = 8192  # tokens on which eight-bit weights are compared with the run's weights
_SAMPLE_TOKENS = 400


@dataclass(frozen=True)
class WrittenPage:
    """A page that was written: its size, its proof, and the effect of rounding to eight bits.

    `compared_on` names the text on which the effect was measured."""

    path: Path
    size: int
    proof: Proof
    rounding: RoundingError
    compared_on: str
    notes: tuple[str, ...]


def write_page(
    trained: Trained, out: Path, program: Program | None, say: Callable[[str], None]
) -> WrittenPage:
    """Write the page of a trained run to `out`. Replaces an existing file.

    `program` runs the page's JavaScript for the proof; None means numpy. `say` gets a line about
    each stage. The model must have builtin parts only. Raises GptcliError (exit code 1) if the page
    is too large, if its tokenizer cannot run in a page, if `program` gives no answer, if the page
    does not compute what the network computes, or if the file cannot be written."""
    assert not trained.model.user_parts.in_network()
    say("rounding the weights to eight bits")
    packed = payload(trained.model, trained.tokenizer)
    script, worker = view_script(), worker_script()
    _refuse_large(len(packed) + len(script) + len(worker), trained)
    eight_bit = rounded(trained.model)
    say("comparing eight bits with the run's weights")
    text, compared_on = _windows(trained)
    rounding = proof.rounding_error(trained.model, eight_bit, text)
    say(f"proving the page in {program.name if program else 'numpy'}")
    proven = proof.prove(packed, eight_bit, trained.tokenizer, program)
    story = story_of(trained, text_size(trained.config))
    whole = document(
        Page(
            title=f"{story.name}: a GPT in one file",
            description=f"A language model of {story.parameters:,} parameters that runs in the "
            "browser, and shows what its attention looks at.",
            body=_body(trained, story, proven, rounding, compared_on),
            styles=[asset("theme.css"), asset("model_page/page.css")],
            scripts=[script],
            data={
                "worker": worker,
                "payload": packed,
                "page-data": json_block(
                    {
                        "prompt": first_prompt(trained, story),
                        "samples": [{"step": step, "text": text} for step, text in story.samples],
                    }
                ),
            },
            workers=True,
            webassembly=True,
        )
    ).encode("utf-8")
    write(out, whole)
    return WrittenPage(
        out, len(whole), proven, rounding, compared_on, tuple(_notes(len(whole), trained))
    )


def _refuse_large(size: int, trained: Trained) -> None:
    if size > TOO_LARGE:
        raise GptcliError(
            f"the page would have {size / 1e6:.0f} MB, but at most {TOO_LARGE / 1e6:.0f} MB are "
            "allowed: larger files open slowly, and few mail programs send them",
            _smaller(trained) + "; for large models, export for onnxruntime or llama.cpp: "
            f"gptcli export {shell_word(trained.run)} --to onnx",
            exit_code=1,
        )


def _notes(size: int, trained: Trained) -> list[str]:
    if size <= LARGE:
        return []
    return [
        f"the page has {size / 1e6:.1f} MB, which is large for a mail or a phone; "
        + _smaller(trained)
    ]


def _smaller(trained: Trained) -> str:
    """Advice on how to get a smaller page, as part of a sentence."""
    embedding = trained.model.wte.weight.numel()
    total = sum(parameter.numel() for parameter in trained.model.parameters())
    if 2 * embedding > total:
        return "most of it is the token embedding: train with tokenizer.kind=bpe or char instead"
    return "train with a smaller model.n_embd or model.n_layer"


def _windows(trained: Trained) -> tuple[Tensor, str]:
    """Token ids on which two networks are compared, int64 (B, T + 1), and a name for their text.

    The text is the run's validation text if that is unchanged and longer than a window, else a text
    that the model writes."""
    width = trained.config.model.block_size
    with contextlib.suppress(GptcliError, OSError):
        wanted = WantedText(
            trained.run,
            content_key_of(trained.run, trained.meta),
            named=frozenset(),
            command=f"gptcli page {shell_word(trained.run)}",
            other_text="",
        )
        corpus, _ = open_text_of_run(wanted, trained.config, trained.tokenizer)
        if corpus.val is not None and len(corpus.val) > width:
            count = max(1, min(_COMPARED, len(corpus.val) - 1) // width)
            idx, targets = next(iter(windows(corpus.val, width, count)))
            both = torch.cat((idx, targets[:, -1:]), dim=1)
            return both, f"the first {counted(targets.numel(), 'token')} of the validation text"
    text = generate_one(
        trained.model,
        trained.tokenizer,
        "",
        max_new_tokens=max(2 * width, _SAMPLE_TOKENS),
        params=SamplingParams(temperature=1.0),
        seed=1,
    )
    ids = trained.tokenizer.encode(text or "") or trained.tokenizer.start_ids() * 2
    length = min(width, len(ids) - 1)
    rows = [ids[at : at + length + 1] for at in range(0, len(ids) - length, length)]
    return torch.tensor(rows), f"{counted(len(rows) * length, 'token')} that the model wrote"


def first_prompt(trained: Trained, story: Story) -> str:
    """The prompt that the page opens with.

    It has the first words of the run's last sample, or of a text that the model writes now. It is
    "" if the tokenizer cannot encode these words."""
    sample = story.samples[-1][1] if story.samples else ""
    if not sample:
        sample = _own_text(trained)
    words = sample.strip().split(" ")
    prompt = words[0]
    for word in words[1:]:
        if len(prompt) + len(word) > 20:
            break
        prompt += " " + word
    with contextlib.suppress(GptcliError):
        ids = trained.tokenizer.encode(prompt[:24])
        if ids:
            return prompt[:24]
    return ""


def _own_text(trained: Trained) -> str:
    model: GPT = trained.model
    text = generate_one(
        model, trained.tokenizer, "", max_new_tokens=60, params=SamplingParams(), seed=1
    )
    return text or ""


# ---- the HTML ------------------------------------------------------------------------------------


def _body(
    trained: Trained, story: Story, proven: Proof, rounding: RoundingError, compared_on: str
) -> str:
    """The text of page.html with the run's figures filled in."""
    config = trained.config.model
    rotary = config.traits.positions == "rotary"
    values = {
        "name": story.name,
        "data": story.data,
        "parameters": f"{story.parameters:,}",
        "token": {"char": "character", "byte": "byte"}.get(trained.tokenizer.kind, "piece of text"),
        "vocabulary": f"{trained.tokenizer.vocab_size:,}",
        "layers": f"{config.n_layer}",
        "heads": f"{config.n_head}",
        "width": f"{config.n_embd}",
        "head_dim": f"{config.head_dim}",
        "window": f"{config.block_size:,}",
        "version": __version__,
        "proof": proof_sentence(proven),
        "rounding": rounding_sentence(rounding, compared_on),
        "window_rule": (
            "In a longer text, each token looks only at itself and the tokens just before it."
            if rotary
            else "If the text grows longer, the model drops the oldest half of the window and "
            "reads the rest again."
        ),
        "curve_words": curve_words(story) if len(story.train) > 1 else "",
    }
    body = asset("model_page/page.html")
    for name, value in values.items():
        body = body.replace(f"{{{{{name}}}}}", html.escape(value))
    rows = "".join(
        f"<div><dt>{html.escape(what)}</dt><dd>{html.escape(value)}</dd></div>"
        for what, value in story.facts
    )
    blocks = {
        "facts": rows,
        "began": how_it_learned(story),
        "curve": curve(story),
        "config": html.escape(story.config),
    }
    for name, block in blocks.items():
        body = body.replace(f"<!--{name}-->", block)
    assert "{{" not in body
    return body


def proof_sentence(proven: Proof) -> str:
    """Three sentences for the page that say what the proof showed."""
    ran = (
        f"{proven.program} ran this page's JavaScript"
        if proven.how == "javascript"
        else f"{proven.program} repeated this page's arithmetic, because there was no JavaScript "
        "engine,"
    )
    texts = (
        "the same"
        if not proven.close_calls
        else f"the same, except {proven.close_calls} that were almost as likely as another token"
    )
    return (
        f"Before this file was written, {ran} on {proven.prompts} prompts, and gptcli compared "
        "the answers with those of its own network, which had the same eight-bit weights. The "
        "logits, which are the scores of all possible next tokens, differ by at most "
        f"{proven.largest_difference:.1e}. The {proven.greedy_tokens} tokens that follow each "
        f"prompt, if the likeliest one is always chosen, are {texts}."
    )


def rounding_sentence(rounding: RoundingError, compared_on: str) -> str:
    """Two sentences for the page on how much rounding to eight bits changes the network."""
    return (
        f"Eight bits change the loss from {rounding.loss:.4f} to {rounding.rounded_loss:.4f} nats "
        f"per token, on {compared_on}. A logit changes by {rounding.logit:.3f} on average, and "
        f"the likeliest next token stays the same at {100 * rounding.same_choice:.1f} % of the "
        "positions."
    )
