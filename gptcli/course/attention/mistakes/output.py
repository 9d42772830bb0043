"""Mistakes of step 8: laying the heads side by side, and the output projection.

Dimensions: B batch, T time (queries), S time (keys), C channels (n_embd), H heads, D head_dim.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from gptcli.course.attention.mistakes.attention_mistake import AttentionMistake
from gptcli.course.attention.stages import Problem, Stage, linear, merge, output


def _merge(*ways: Stage) -> tuple[Mapping[str, Stage], ...]:
    return tuple({"merge": way} for way in ways)


def _heads_alike(reduce: Stage) -> Stage:
    """The heads reduced to one, repeated to the length of C."""
    return lambda p, mixed: reduce(mixed).repeat(1, 1, p.H)


def _output(*ways: Stage) -> tuple[Mapping[str, Stage], ...]:
    return tuple({"output": way} for way in ways)


def _bare(p: Problem, merged: Tensor) -> Tensor:
    return merged @ p.parts.output.weight.double().T


def _turned(p: Problem, merged: Tensor) -> Tensor:
    y = merged @ p.parts.output.weight.double()
    return y if p.parts.output.bias is None else y + p.parts.output.bias.double()


BANK = (
    AttentionMistake(
        "merge-without-transpose",
        8,
        "y.view(B, T, C)",
        "({B}, {H}, {T}, {D}) is viewed as ({B}, {T}, {C}) while heads still stand before time: "
        "each row mixes tokens",
        "which dimension has to stand next to head_dim before the two are merged?",
        "swap dimensions 1 and 2 first, then make it contiguous, then view",
        _merge(lambda p, m: m.reshape(p.B, p.T, p.C)),
    ),
    AttentionMistake(
        "merge-interleaved",
        8,
        "y.permute(0, 2, 3, 1).reshape(B, T, C)",
        "the heads are laid into each other, channel by channel, instead of side by side: "
        "({D}, {H}) where ({H}, {D}) belongs",
        "the first {D} channels of the result are head 0",
        "time, then heads, then channels: (B, T, {H}, {D})",
        _merge(
            lambda p, m: m.permute(0, 2, 3, 1).reshape(p.B, p.T, p.C),
            lambda p, m: m.transpose(-1, -2).reshape(p.B, p.T, p.C),
            lambda p, m: m.permute(0, 3, 2, 1).reshape(p.B, p.T, p.C),
            lambda p, m: m.permute(0, 3, 1, 2).reshape(p.B, p.T, p.C),
            lambda p, m: m.permute(2, 0, 1, 3).reshape(p.B, p.T, p.C),
            lambda p, m: m.permute(1, 0, 2, 3).reshape(p.B, p.T, p.C),
            lambda p, m: m.permute(1, 2, 0, 3).reshape(p.B, p.T, p.C),
        ),
    ),
    AttentionMistake(
        "heads-averaged",
        8,
        "y.mean(dim=1)",
        "the {H} heads are averaged or added where they should be laid side by side",
        "{H} heads of {D} channels make {C}",
        "concatenate the heads along the channels",
        _merge(
            _heads_alike(lambda m: m.mean(dim=1)),
            _heads_alike(lambda m: m.sum(dim=1)),
        ),
    ),
    AttentionMistake(
        "one-head-for-all",
        8,
        "torch.cat(heads, dim=1)[:, :T]",
        "the result of one head stands in the place of all {H}, {D} channels over and over",
        "{H} heads of {D} channels make {C}",
        "concatenate the heads along the channels, the last dimension",
        _merge(
            _heads_alike(lambda m: m[:, 0]),
            _heads_alike(lambda m: m[:, -1]),
        ),
    ),
    AttentionMistake(
        "heads-in-wrong-order",
        8,
        "torch.cat(heads[::-1], dim=-1)",
        "the {H} heads are laid side by side in another order",
        "head 0 comes first",
        "concatenate in the order of the split",
        _merge(
            lambda p, m: merge(p, m.flip(1)),
            lambda p, m: merge(p, m.roll(1, 1)),
            lambda p, m: merge(p, m.roll(-1, 1)),
        ),
    ),
    AttentionMistake(
        "projection-left-out",
        8,
        "return y",
        "the merged heads, ({B}, {T}, {C}), are returned without the output projection",
        "what mixes the {H} heads with each other?",
        "return what c_proj makes of the merged heads",
        _output(lambda p, m: m),
    ),
    AttentionMistake(
        "projection-twice",
        8,
        "self.c_proj(self.c_proj(y))",
        "the output projection, ({C}, {C}), is applied twice",
        "look for a second call of c_proj",
        "call c_proj once, at the end",
        _output(lambda p, m: output(p, output(p, m))),
    ),
    AttentionMistake(
        "another-projection",
        8,
        "self.value(y)",
        "another layer, ({C}, {C}), stands where the output projection belongs",
        "which layer has not been used yet?",
        "the last layer is c_proj",
        _output(
            lambda p, m: linear(p.parts.value, m),
            lambda p, m: linear(p.parts.query, m),
            lambda p, m: linear(p.parts.key, m),
        ),
    ),
    AttentionMistake(
        "output-without-bias",
        8,
        "y @ self.c_proj.weight.T",
        "the bias of the output projection, ({C},), is not added, or added twice",
        "a linear layer is a product and a bias",
        "call the layer, self.c_proj(y)",
        _output(_bare, lambda p, m: 2 * output(p, m) - _bare(p, m)),
    ),
    AttentionMistake(
        "output-weight-transposed",
        8,
        "y @ self.c_proj.weight",
        "the weight of the output projection, ({C}, {C}), is used the wrong way round",
        "nn.Linear computes x @ weight.T",
        "call the layer, self.c_proj(y)",
        _output(_turned),
    ),
    AttentionMistake(
        "residual-inside",
        8,
        "return x + self.c_proj(y)",
        "x, ({B}, {T}, {C}), is added to the output; the block does that around the attention",
        "who adds the residual?",
        "return the projection alone",
        _output(
            lambda p, m: output(p, m) + p.x,
            lambda p, m: output(p, m + p.x),
            lambda p, m: output(p, m) + m,
        ),
    ),
    AttentionMistake(
        "activation-on-output",
        8,
        "F.gelu(self.c_proj(y))",
        "the output, ({B}, {T}, {C}), goes through a function that is no part of attention",
        "the last thing is the projection (and dropout)",
        "leave out what comes around c_proj",
        _output(
            *(
                (lambda p, m, f=f: f(output(p, m)))
                for f in (torch.relu, F.gelu, torch.tanh, torch.sigmoid)
            ),
            *((lambda p, m, f=f: output(p, f(m))) for f in (torch.relu, F.gelu, torch.tanh)),
            lambda p, m: F.layer_norm(output(p, m), (p.C,)),
            lambda p, m: output(p, F.layer_norm(m, (p.C,))),
            lambda p, m: F.softmax(output(p, m), dim=-1),
        ),
    ),
    AttentionMistake(
        "output-scaled",
        8,
        "self.c_proj(y) / n_head",
        "the output, ({B}, {T}, {C}), is multiplied by a constant",
        "the last thing is the projection (and dropout)",
        "return what c_proj gives, unchanged",
        _output(
            *(
                (lambda p, m, f=f: output(p, m) * f(p))
                for f in (
                    lambda p: 1 / p.H,
                    lambda p: float(p.H),
                    lambda p: 1 / p.T,
                    lambda p: p.C**-0.5,
                    lambda p: p.D**-0.5,
                    lambda p: 2.0,
                    lambda p: 0.5,
                    lambda p: 0.5**0.5,
                )
            ),
            *((lambda p, m, f=f: output(p, m * f)) for f in (2.0, 0.5)),
        ),
    ),
    AttentionMistake(
        "output-for-one-token",
        8,
        "y[:, -1:]",
        "one token's output is used for all {T} tokens",
        "every token has an output of its own",
        "keep the dimension of time whole",
        _output(
            lambda p, m: output(p, m)[:, -1:].expand(p.B, p.T, p.C),
            lambda p, m: output(p, m.mean(dim=1, keepdim=True)).expand(p.B, p.T, p.C),
            lambda p, m: output(p, m).flip(1),
        ),
    ),
    AttentionMistake(
        "projection-of-x",
        8,
        "self.c_proj(x)",
        "the output projection gets x, ({B}, {T}, {C}), and all that was computed is left behind",
        "what has to be mixed at the end?",
        "return what c_proj makes of the merged heads",
        _output(lambda p, m: output(p, p.x)),
    ),
    AttentionMistake(
        "output-bias-per-head",
        8,
        "the bias is added once for each head",
        "the bias of the output projection, ({C},), is added {H} times, once for each head",
        "how often does a linear layer add its bias?",
        "sum the heads first and add the bias once, or call self.c_proj(y)",
        _output(lambda p, m: p.H * output(p, m) - (p.H - 1) * _bare(p, m)),
    ),
    AttentionMistake(
        "channels-backward",
        8,
        "y.flip(-1)",
        "the {C} channels of the merged heads stand in reverse order",
        "head 0 comes first, and its channel 0 before all",
        "leave out the flip",
        _merge(lambda p, m: merge(p, m).flip(-1)),
    ),
)
