"""What a training step costs in time and memory, as a function of the shape: the rules.

Dimensions: L layers, B batch, T context, C channels, V vocabulary, M = B * T tokens.
"""

from __future__ import annotations

from gptcli.config import Config
from gptcli.model.layers import swiglu_width

# Fitted by benchmarks/cost.py, in units in which they add up to seconds on the machine of
# benchmarks/RESULTS.md; another machine's are these times one factor, which it measures.
SECONDS = {
    "products": 2.805e-12,
    "attention": 9.079e-12,
    "rows": 8.622e-09,
    "orthogonalise": 2.387e-11,
}


def matrix_parameters(config: Config, vocab_size: int) -> int:
    """Numbers in the matrices that every token is multiplied with, the head's among them."""
    m = config.model
    hidden = 3 * swiglu_width(m.n_embd) if m.arch == "modern" else 8 * m.n_embd
    return m.n_layer * (4 * m.n_embd**2 + hidden * m.n_embd) + vocab_size * m.n_embd


def counts(config: Config, vocab_size: int) -> dict[str, float]:
    """How often each kind of work comes in a step, in multiples that `SECONDS` prices."""
    m, train = config.model, config.train
    tokens = train.batch_size * train.grad_accum * m.block_size
    parameters = matrix_parameters(config, vocab_size)
    blocks = parameters - vocab_size * m.n_embd
    return {
        "products": tokens * parameters,
        "attention": tokens * m.n_layer * m.n_embd * m.block_size,
        "rows": tokens * m.n_layer * m.n_embd,
        "orthogonalise": blocks * m.n_embd if train.optimizer == "muon" else 0.0,
    }


def relative_seconds(config: Config, vocab_size: int) -> float:
    """Seconds of a step by the rule, before the machine's factor."""
    return sum(SECONDS[kind] * count for kind, count in counts(config, vocab_size).items())
