"""Proves that a page's JavaScript gives the same logits and greedy texts as the network.

Before a page is written, Node.js or headless Chromium runs the page's payload, runtime and
tokenizer on 64 prompts. If the machine has neither program, arithmetic.py computes the same in
numpy.

Dimensions: T tokens, V vocabulary, W window (block_size).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gptcli.errors import GptcliError
from gptcli.model.gpt import GPT
from gptcli.pages.model_page import arithmetic
from gptcli.pages.model_page.programs import Answer, Program, ProgramError
from gptcli.plurals import counted
from gptcli.sampling.streams import window_start
from gptcli.sampling.valid_text import as_tensor, state_after, table_of
from gptcli.tokenization import Tokenizer
from gptcli.tokenization.utf8_states import INVALID

if TYPE_CHECKING:
    from gptcli.sampling.valid_text import Table

TOLERANCE = 1e-3
"""The proof fails if a logit of the page differs from the network's logit by more than this."""

PROMPTS, GREEDY_TOKENS = 64, 200
_LONGEST = 512  # tokens; a longer window does not make the prompts longer

_TEXTS = (
    "To be, or not to be, that is the question.\n",
    "  two  spaces, a tab\tand\r\nline ends\n\n",
    "naïve façade, größer, 你好, привет, مرحبا, 🙂🙃",
    "<|endoftext|> as a text",
    "x = 3.14159 * r**2  # don't, I'LL, we've\n",
    "\ufeffa byte-order mark, \x85next line\u2028 and \u3000 wide spaces \x1c\n",
    "",
)


@dataclass(frozen=True)
class Proof:
    """How a page was proven, and how far the page and the network differ.

    `how` says whether the page's JavaScript ran, or the same arithmetic in numpy. `program` is the
    name and version of the program. `largest_difference` is the largest difference between a logit
    of the page and the same logit of the network. `close_calls` counts the greedy tokens for which
    another allowed token has a larger logit in the network, by at most TOLERANCE."""

    how: Literal["javascript", "numpy"]
    program: str
    largest_difference: float
    prompts: int
    greedy_tokens: int
    close_calls: int


def prove(payload: str, rounded: GPT, tokenizer: Tokenizer, program: Program | None) -> Proof:
    """Compare the page with the network on the same rounded weights, in float32.

    Raises GptcliError (exit code 1) if `program` gives no answer, if token ids differ, if a logit
    differs by more than TOLERANCE, or if a greedy token's logit is more than TOLERANCE below the
    network's largest one."""
    texts = list(prompts(tokenizer, rounded.config.block_size))
    answer, name = _ask(payload, texts, tokenizer, program)
    table = table_of(tokenizer)
    largest, close_calls = 0.0, 0
    for number, text in enumerate(texts):
        ids = tokenizer.encode(text)
        if answer.ids[number] != ids:
            raise _refused(f"{name} gives other token ids for {text[:40]!r}")
        start, tokens = ids or tokenizer.start_ids(), answer.tokens[number]
        logits = network_logits(rounded, [*start, *tokens[:-1]], first=len(start) - 1)
        found = torch.from_numpy(answer.logits[number].copy())
        difference = float((logits[0] - found).abs().max())
        if not difference <= TOLERANCE:
            raise _refused(
                f"{name} computes other logits: after a prompt of "
                f"{counted(len(start), 'token')} they differ by {difference:.2g}"
            )
        largest = max(largest, difference)
        close_calls += _greedy(logits, start, tokens, table, name)
    how: Literal["javascript", "numpy"] = "javascript" if program is not None else "numpy"
    return Proof(how, name, largest, len(texts), GREEDY_TOKENS, close_calls)


def _ask(
    payload: str, texts: Sequence[str], tokenizer: Tokenizer, program: Program | None
) -> tuple[Answer, str]:
    """What the page answers to `texts`, and the name of the program that computed it."""
    if program is None:
        return arithmetic.ask(payload, texts, GREEDY_TOKENS, tokenizer), f"numpy {np.__version__}"
    try:
        return program.ask(program.path, payload, texts, GREEDY_TOKENS), program.name
    except ProgramError as error:
        raise GptcliError(
            f"the page was not written: {program.name} could not run the page's JavaScript: "
            f"{error}",
            f"check that `{program.path}` works and that there is enough memory; if neither "
            "Node.js nor Chromium is on PATH, gptcli checks the page in numpy",
            exit_code=1,
        ) from None


def _greedy(
    logits: Tensor, start: Sequence[int], tokens: Sequence[int], table: Table | None, name: str
) -> int:
    """How many of the page's greedy tokens are not the network's likeliest, but nearly as likely.

    `tokens` are the page's T tokens. Row t of `logits` (T, V) is the network's prediction of
    token t. Raises GptcliError if a token's logit is more than TOLERANCE below the largest one."""
    taken = logits.gather(1, torch.tensor(tokens)[:, None])[:, 0]
    behind = logits.amax(dim=1) - taken
    # The likeliest token can be forbidden, because it would make the text invalid UTF-8.
    if table is not None and float(behind.max()) > 0:
        states = [state_after(table, start)]
        for token in tokens[:-1]:
            after = int(table[states[-1], token])
            states.append(0 if after == INVALID else after)
        logits = logits.masked_fill(as_tensor(table)[states] == INVALID, -torch.inf)
        behind = logits.amax(dim=1) - taken
    if not float(behind.max()) <= TOLERANCE:
        at = int((~(behind <= TOLERANCE)).nonzero()[0])
        raise _refused(
            f"{name} writes another greedy text: token {at + 1} is the first that differs"
        )
    return int((behind > 0).sum())


@torch.no_grad()
def network_logits(model: GPT, tokens: Sequence[int], first: int) -> Tensor:
    """The float32 logits after each token of tokens[first:], computed as sampling does.

    W is the block size. With rotary positions, each token attends to the last W tokens, including
    itself. With learned positions, the window moves by half of W, as `window_start` says."""
    width, idx = model.config.block_size, torch.tensor([list(tokens)])
    if model.wpe is None:
        cache = model.new_cache(1) if len(tokens) > width else None
        parts = [model.features(piece, cache) for piece in torch.split(idx, width, dim=1)]
        return model.lm_head(torch.cat(parts, dim=1)[0, first:])  # type: ignore[no-any-return]
    rows = []
    at = first
    while at < len(tokens):
        start = window_start(at + 1, width)
        end = at + 1
        while end < len(tokens) and window_start(end + 1, width) == start:
            end += 1
        rows.append(model.features(idx[:, start:end])[0, at - start :])
        at = end
    return model.lm_head(torch.cat(rows))  # type: ignore[no-any-return]


def prompts(tokenizer: Tokenizer, block_size: int) -> Iterator[str]:
    """The texts of a proof. They depend only on the tokenizer and on W, the block size.

    Some are fixed. The others have up to 1.4 W random tokens, or 1.4 times 512 if W is over 512."""
    count = 0
    for text in _TEXTS:
        with suppress(GptcliError):
            tokenizer.encode(text)
            count += 1
            yield text
    generator = torch.Generator().manual_seed(20_000)
    full = min(block_size, _LONGEST)
    for number in range(PROMPTS - count):
        share = number / (PROMPTS - count - 1)
        length = max(1, round(1.4 * full * share**3))  # most are short, some exceed `full`
        drawn = torch.randint(0, tokenizer.vocab_size, (length,), generator=generator)
        yield tokenizer.decode(drawn.tolist())


@dataclass(frozen=True)
class RoundingError:
    """How much eight-bit weights change a network, on average over the tokens of a text.

    `logit` is the mean absolute difference between the logits of the two networks. `same_choice` is
    the share of positions at which the likeliest token stays the same. The losses are in nats per
    token."""

    loss: float
    rounded_loss: float
    logit: float
    same_choice: float
    tokens: int


@torch.no_grad()
def rounding_error(model: GPT, rounded: GPT, windows: Tensor) -> RoundingError:
    """Compare `model` with its copy `rounded` on a text.

    `windows` has the ids of the text, int64 (B, T + 1), with T at most block_size."""
    idx, targets = windows[:, :-1], windows[:, 1:]
    losses, logit, same = [0.0, 0.0], 0.0, 0.0
    for row, target in zip(torch.split(idx, 4), torch.split(targets, 4), strict=True):
        ours, theirs = model(row).float(), rounded(row).float()
        for place, logits in enumerate((ours, theirs)):
            loss = F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="sum")
            losses[place] += float(loss)
        # Only differences between logits matter, because a constant added to all changes nothing.
        ours, theirs = ours - ours.mean(-1, keepdim=True), theirs - theirs.mean(-1, keepdim=True)
        logit += float((ours - theirs).abs().mean(-1).sum())
        same += float((ours.argmax(-1) == theirs.argmax(-1)).sum())
    count = targets.numel()
    return RoundingError(losses[0] / count, losses[1] / count, logit / count, same / count, count)


def _refused(why: str) -> GptcliError:
    return GptcliError(
        f"the page was not written: {why}",
        "this is a fault of gptcli or of the program that it used: please report it",
        exit_code=1,
    )
