"""How the time of a training step grows with the shape of the model and the batch.

Dimensions: L layers, B batch, T context, C channels, V vocabulary, M = B * T tokens.
"""

from __future__ import annotations

from gptcli.config import Config
from gptcli.training.optimizers import RECIPES

# Seconds per unit of work, fitted by benchmarks/cost.py on the machine of benchmarks/RESULTS.md.
# On another machine, one factor multiplies them all; gptcli.training.estimate measures it.
SECONDS = {
    "products": 2.805e-12,
    "attention": 9.079e-12,
    "rows": 8.622e-09,
    "orthogonalise": 2.387e-11,
}


def matrix_parameters(config: Config, vocab_size: int) -> int:
    """Weights of the matrices that every token is multiplied with, the head included."""
    m, arch = config.model, config.model.traits
    hidden = arch.feed_forward_matrices * arch.hidden_width(m.n_embd)
    return m.n_layer * (4 * m.n_embd**2 + hidden * m.n_embd) + vocab_size * m.n_embd


def counts(config: Config, vocab_size: int) -> dict[str, float]:
    """Units of each kind of work in a step, by the keys of `SECONDS`."""
    m, tokens = config.model, config.tokens_per_step
    parameters = matrix_parameters(config, vocab_size)
    blocks = parameters - vocab_size * m.n_embd
    orthogonalises = RECIPES[config.train.optimizer].orthogonalises
    return {
        "products": tokens * parameters,
        "attention": tokens * m.n_layer * m.n_embd * m.block_size,
        "rows": tokens * m.n_layer * m.n_embd,
        "orthogonalise": blocks * m.n_embd if orthogonalises else 0.0,
    }


def relative_seconds(config: Config, vocab_size: int) -> float:
    """Seconds of a step on the machine of `SECONDS`."""
    return sum(SECONDS[kind] * count for kind, count in counts(config, vocab_size).items())
