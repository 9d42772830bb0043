"""Logits -> next token: repetition penalty, temperature, top-k, top-p, min-p, and the draw.

All functions are pure functions of tensors. The C library chooses tokens by the same rules
(native/sample/next_token.h). Tests compare the choices. Dimensions: B streams, V vocabulary.

First reading: the whole file.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gptcli.sampling.params import SamplingParams as SamplingParams
from gptcli.sampling.params import is_greedy as is_greedy

_NEVER_DRAWN = -87.0  # e^-87 = 1.6e-38: smaller exponentials are 0 in the C library's float32


def penalise(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """The logits, lowered for tokens that the text already has.

    A positive logit of such a token is divided by the penalty. A negative logit is multiplied by
    the penalty. logits (B, V), seen bool (B, V) -> (B, V). Source: Keskar et al. 2019, CTRL,
    section 4.1."""
    changed = torch.where(logits > 0, logits / penalty, logits * penalty)
    return torch.where(seen, changed, logits)


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """The k largest logits of each row, and -inf for the others. (B, V) -> (B, V).

    Logits that are equal to the k-th largest also stay."""
    if k >= logits.shape[-1]:
        return logits
    smallest = torch.topk(logits, k, dim=-1).values[:, -1:]
    return logits.masked_fill(logits < smallest, float("-inf"))


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """The logits of the fewest tokens whose probabilities add up to at least p; others get -inf.

    The likeliest token always stays. (B, V) -> (B, V). Source: Holtzman et al. 2019, nucleus
    sampling."""
    if p >= 1.0:
        return logits
    ordered, order = torch.sort(logits, dim=-1, descending=True, stable=True)
    probabilities = torch.softmax(ordered, dim=-1)
    before = probabilities.cumsum(dim=-1) - probabilities
    dropped = torch.zeros_like(before, dtype=torch.bool).scatter(-1, order, before >= p)
    dropped.scatter_(-1, order[:, :1], False)
    return logits.masked_fill(dropped, float("-inf"))


def keep_min_p(logits: Tensor, min_p: float) -> Tensor:
    """The logits of tokens with at least min_p times the highest probability; others get -inf.

    (B, V) -> (B, V).

    Source: Nguyen et al. 2024, "Min-p sampling"."""
    probabilities = torch.softmax(logits, dim=-1)
    threshold = probabilities.amax(dim=-1, keepdim=True) * min_p
    return logits.masked_fill(probabilities < threshold, float("-inf"))


def choose_token(
    logits: Tensor, params: SamplingParams, uniform: Tensor, seen: Tensor | None = None
) -> Tensor:
    """The next token of each stream: logits (B, V), uniform float64 (B,) in [0, 1) -> int64 (B,).

    Each stream has its own uniform number, so its text does not depend on the other streams of the
    batch. `seen`, bool (B, V), marks the tokens already in the text; pass it if
    params.repetition_penalty is not 1."""
    logits = logits.float()
    if params.repetition_penalty != 1.0:
        assert seen is not None
        logits = penalise(logits, seen, params.repetition_penalty)
    if is_greedy(params):
        return logits.argmax(dim=-1)
    logits = logits / params.temperature
    if params.top_k is not None:
        logits = keep_top_k(logits, params.top_k)
    if params.top_p is not None:
        logits = keep_top_p(logits, params.top_p)
    if params.min_p is not None:
        logits = keep_min_p(logits, params.min_p)
    return draw(logits, uniform)


def choose_valid_token(
    logits: Tensor,
    params: SamplingParams,
    uniform: Tensor,
    allowed: Tensor,
    seen: Tensor | None = None,
) -> Tensor:
    """The next token of each stream, always one of `allowed`, bool (B, V).

    First chooses among all tokens. If the chosen token is not allowed, chooses again among the
    allowed tokens. So `allowed` changes a seed's text only if the first choice is a forbidden
    token. One call of choose_token makes both choices, so the host need not read the
    first choice from the device."""
    logits = torch.cat((logits, logits.masked_fill(~allowed, float("-inf"))))
    uniform = torch.cat((uniform, second_number(uniform)))
    first, second = choose_token(
        logits, params, uniform, None if seen is None else torch.cat((seen, seen))
    ).chunk(2)
    is_allowed = allowed.gather(1, first[:, None])[:, 0]
    return torch.where(is_allowed, first, second)


def second_number(uniform: Tensor) -> Tensor:
    """A second number in [0, 1) for each uniform number, made from the lower 27 of its 53 bits.

    The lower bits are uniform even if the first choice is forbidden, because the first choice
    depends almost only on the upper bits."""
    shifted = uniform * 2.0**26
    return shifted - shifted.floor()


def draw(logits: Tensor, uniform: Tensor) -> Tensor:
    """The first token whose cumulative probability exceeds the uniform number.

    Logits (B, V), uniform float64 (B,) in [0, 1) -> int64 (B,). A token's cumulative probability is
    the sum of the probabilities of all ids up to its own id. A token is never drawn if top-k, top-p
    or min-p has removed it, or if its probability is at most e^-87 times the highest probability.

    Rounding can make the largest cumulative probability smaller than 1. So the uniform number is
    first multiplied by the largest cumulative probability. The product is smaller than that
    probability, because the uniform number is below 1. So there is always a token to draw. The C
    library draws by the same rule. NaN logits give token 0."""
    assert uniform.dtype == torch.float64, "float32 would round a number just below 1 to 1"
    never = logits - logits.amax(dim=-1, keepdim=True) <= _NEVER_DRAWN
    cumulative = torch.softmax(logits, dim=-1, dtype=torch.float64).cumsum_(dim=-1)
    cumulative.masked_fill_(never, 0.0)
    point = uniform[:, None] * cumulative.amax(dim=-1, keepdim=True)
    return (cumulative > point).view(torch.uint8).argmax(dim=-1)  # argmax takes no bool
