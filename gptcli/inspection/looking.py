"""Runs a text through a trained network. Returns what its heads looked at, and its logit lens.

Dimensions: T time, H heads, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gptcli.errors import GptcliError
from gptcli.inspection.head_kinds import HeadKind, head_kinds
from gptcli.inspection.learner import LearnerFile, traced_weights
from gptcli.model.attention import CausalSelfAttention
from gptcli.model.gpt import GPT
from gptcli.model.inside import Inside, builtin_weights, look_inside, part_with_attention
from gptcli.training.loading import Trained

MOST_TOKENS = 256
"""The most tokens of a text. A map of more tokens would be large and hard to read."""
_GUESSES = 5  # how many guesses the lens has for each layer and token


@dataclass(frozen=True)
class Guess:
    """A possible next token and its probability, if the network ended after one of its layers."""

    id: int
    probability: float


@dataclass(frozen=True)
class Look:
    """What the network did with a text of T tokens.

    `maps` has the attention weights (H, T, T) of each layer, or None if they are hidden. `heads`
    are the heads with known weights, the clearest kinds first. `lens[i][t]` are the most likely
    next tokens after token t, if the network ended after its first i layers. `dropped` is the
    number of tokens at the beginning of the prompt that were left out."""

    ids: list[int]
    maps: list[Tensor | None]
    heads: list[HeadKind]
    lens: list[list[list[Guess]]]
    inside: Inside
    dropped: int


def ids_of_prompt(trained: Trained, prompt: str) -> tuple[list[int], int]:
    """The last token ids of a prompt, and the number of earlier ids, which are left out.

    Returns as many ids as the model can read, but at most MOST_TOKENS. Raises GptcliError if the
    prompt has no tokens, or has a character that the tokenizer lacks."""
    if not prompt:
        raise GptcliError("the prompt is empty", 'give a text: --prompt "To be or not to be"')
    tokenizer = trained.tokenizer
    if not tokenizer.encode(prompt):
        raise GptcliError("the prompt has no tokens", "give another text with --prompt")
    ids = tokenizer.prompt_ids(prompt)
    room = min(trained.config.model.block_size, MOST_TOKENS)
    return ids[-room:], max(0, len(ids) - room)


def look(trained: Trained, prompt: str, learner: LearnerFile | None = None) -> Look:
    """What the network does with `prompt`.

    `learner` is the file of the user's attention or block, if the run has one."""
    ids, dropped = ids_of_prompt(trained, prompt)
    model = trained.model
    inside = look_inside(model, ids)
    maps = weights_of_layers(model, inside, learner)
    return Look(
        ids,
        maps,
        head_kinds(model, maps, lambda one: weights_of_layers(model, look_inside(model, one),
                                                              learner)),
        logit_lens(model, inside),
        inside,
        dropped,
    )  # fmt: skip


def weights_of_layers(
    model: GPT, inside: Inside, learner: LearnerFile | None
) -> list[Tensor | None]:
    """The attention weights (H, T, T) of each layer, float32 on the CPU.

    The weights of the builtin attention are computed from its queries and keys. The weights of a
    learner's attention are taken from a trace of its forward pass. If the trace lacks the
    weights of a layer, the layer has None."""
    found: list[Tensor | None] = []
    for layer, x in enumerate(inside.inputs):
        part = part_with_attention(model, layer)
        if isinstance(part, CausalSelfAttention):
            found.append(builtin_weights(part, x).cpu())
        else:
            found.append(traced_weights(part, x, model.config.n_head, learner))
    return found


@torch.no_grad()
def logit_lens(model: GPT, inside: Inside) -> list[list[list[Guess]]]:
    """For each depth and token: the most likely next tokens if the network ended at this depth.

    The depths are: before the first block, and after each block. At each depth, the last norm and
    the head are applied to the residual stream.

    Source: nostalgebraist 2020, "interpreting GPT: the logit lens"."""
    count = min(_GUESSES, model.vocab_size)
    lens = []
    for stream in inside.stream:
        probabilities = model.lm_head(model.ln_f(stream)).float().softmax(-1)  # (T, V)
        best, ids = probabilities.topk(count, dim=-1)
        lens.append(
            [
                [Guess(id, probability) for id, probability in zip(*row, strict=True)]
                for row in zip(ids.tolist(), best.tolist(), strict=True)
            ]
        )
    return lens
