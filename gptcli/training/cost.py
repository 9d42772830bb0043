"""How the time of a training step grows with the sizes of the network and the batch."""

from __future__ import annotations

from gptcli.config import Config
from gptcli.training.optimizers import RECIPES

# Seconds per unit of work, fitted by benchmarks/cost.py on the machine of benchmarks/RESULTS.md.
# For another machine, one factor multiplies all of them. gptcli.training.estimate measures this
# factor.
SECONDS = {
    "products": 2.805e-12,
    "attention": 9.079e-12,
    "rows": 8.622e-09,
    "orthogonalise": 2.387e-11,
}


def matrix_parameters(config: Config, vocab_size: int) -> int:
    """The number of weights in the matrices that multiply every token, including the head."""
    m, arch = config.model, config.model.traits
    hidden = arch.feed_forward_matrices * arch.hidden_width(m.n_embd)
    attention = 2 * m.attention_width + 2 * m.kv_heads * m.head_dim
    return m.n_layer * (attention + hidden) * m.n_embd + vocab_size * m.n_embd


def counts(config: Config, vocab_size: int) -> dict[str, float]:
    """How much work a step does: the number of units for each kind of work in `SECONDS`."""
    m, tokens = config.model, config.tokens_per_step
    parameters = matrix_parameters(config, vocab_size)
    blocks = parameters - vocab_size * m.n_embd
    orthogonalises = RECIPES[config.train.optimizer].orthogonalises
    return {
        "products": tokens * parameters,
        "attention": tokens * m.n_layer * m.attention_width * m.block_size,
        "rows": tokens * m.n_layer * m.n_embd,
        "orthogonalise": blocks * m.n_embd if orthogonalises else 0.0,
    }


def relative_seconds(config: Config, vocab_size: int) -> float:
    """Seconds that a step takes on the machine on which `SECONDS` was measured."""
    return sum(SECONDS[kind] * count for kind, count in counts(config, vocab_size).items())
