"""Known mistakes of step 8: concatenation of the heads and the output projection.

Dimensions: B batch, T time (queries), S time (keys), C channels (n_embd), H heads, D head_dim.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from gptcli.course.attention.mistakes.attention_mistake import AttentionMistake
from gptcli.course.attention.stages import Problem, Stage, linear, merge, output


def _merged_by(*stages: Stage) -> tuple[Mapping[str, Stage], ...]:
    return tuple({"merge": stage} for stage in stages)


def _one_head_repeated(reduce: Stage) -> Stage:
    """A wrong stage: `reduce` makes one head of all heads, and this head is repeated H times."""
    return lambda p, mixed: reduce(mixed).repeat(1, 1, p.H)


def _projected_by(*stages: Stage) -> tuple[Mapping[str, Stage], ...]:
    return tuple({"output": stage} for stage in stages)


def _output_without_bias(p: Problem, merged: Tensor) -> Tensor:
    return merged @ p.parts.output.weight.double().T


def _output_by_transposed_weight(p: Problem, merged: Tensor) -> Tensor:
    y = merged @ p.parts.output.weight.double()
    return y if p.parts.output.bias is None else y + p.parts.output.bias.double()


BANK = (
    AttentionMistake(
        "merge-without-transpose",
        8,
        "y.view(B, T, C)",
        "you view ({B}, {H}, {T}, {D}) as ({B}, {T}, {C}) while heads still come before time: "
        "each row mixes tokens",
        "which dimension must be next to head_dim before you merge the two?",
        "swap dimensions 1 and 2 first, then call contiguous(), then view",
        _merged_by(lambda p, m: m.reshape(p.B, p.T, p.C)),
    ),
    AttentionMistake(
        "merge-interleaved",
        8,
        "y.permute(0, 2, 3, 1).reshape(B, T, C)",
        "you interleave the heads channel by channel instead of placing them side by side: "
        "({D}, {H}) instead of ({H}, {D})",
        "the first {D} channels of the result are head 0",
        "bring the dimensions into the order batch, time, heads, channels: (B, T, {H}, {D})",
        _merged_by(lambda p, m: m.permute(0, 2, 3, 1).reshape(p.B, p.T, p.C)),
    ),
    AttentionMistake(
        "merge-in-another-order",
        8,
        "y.permute(0, 3, 1, 2).reshape(B, T, C)",
        "you merge the dimensions of ({B}, {H}, {T}, {D}) in another order than batch, time, "
        "heads, channels: row t of the result is then not token t",
        "which two dimensions must come last before you merge them?",
        "bring the dimensions into the order batch, time, heads, channels: (B, T, {H}, {D})",
        _merged_by(
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
        "you average or add the {H} heads instead of placing them side by side",
        "{H} heads of {D} channels make {C}",
        "concatenate the heads along the channels",
        _merged_by(
            _one_head_repeated(lambda m: m.mean(dim=1)),
            _one_head_repeated(lambda m: m.sum(dim=1)),
        ),
    ),
    AttentionMistake(
        "one-head-for-all",
        8,
        "heads[0].repeat(1, 1, n_head)",
        "you use the result of one head for all {H} heads: the same {D} channels again and again",
        "{H} heads of {D} channels make {C}",
        "concatenate the heads along the channels, the last dimension",
        _merged_by(
            _one_head_repeated(lambda m: m[:, 0]),
            _one_head_repeated(lambda m: m[:, -1]),
        ),
    ),
    AttentionMistake(
        "heads-in-wrong-order",
        8,
        "torch.cat(heads[::-1], dim=-1)",
        "you place the {H} heads side by side in another order",
        "head 0 comes first",
        "concatenate the heads in the order of the split",
        _merged_by(
            lambda p, m: merge(p, m.flip(1)),
            lambda p, m: merge(p, m.roll(1, 1)),
            lambda p, m: merge(p, m.roll(-1, 1)),
        ),
    ),
    AttentionMistake(
        "projection-left-out",
        8,
        "return y",
        "you return the merged heads, ({B}, {T}, {C}), without the output projection",
        "what mixes the {H} heads with each other?",
        "apply c_proj to the merged heads and return the result",
        _projected_by(lambda p, m: m),
    ),
    AttentionMistake(
        "projection-twice",
        8,
        "self.c_proj(self.c_proj(y))",
        "you apply the output projection, ({C}, {C}), twice",
        "look for a second call of c_proj",
        "call c_proj once, at the end",
        _projected_by(lambda p, m: output(p, output(p, m))),
    ),
    AttentionMistake(
        "another-projection",
        8,
        "self.value(y)",
        "you use another layer, ({C}, {C}), instead of the output projection",
        "which layer have you not used yet?",
        "the last layer is c_proj",
        _projected_by(
            lambda p, m: linear(p.parts.value, m),
            lambda p, m: linear(p.parts.query, m),
            lambda p, m: linear(p.parts.key, m),
        ),
    ),
    AttentionMistake(
        "output-without-bias",
        8,
        "y @ self.c_proj.weight.T",
        "you do not add the output projection's bias of shape ({C},), or you add it twice",
        "a linear layer is a product plus a bias",
        "call the layer: self.c_proj(y)",
        _projected_by(
            _output_without_bias, lambda p, m: 2 * output(p, m) - _output_without_bias(p, m)
        ),
    ),
    AttentionMistake(
        "output-weight-transposed",
        8,
        "y @ self.c_proj.weight",
        "you multiply by the weight of the output projection, ({C}, {C}), without transposing it",
        "nn.Linear computes x @ weight.T",
        "call the layer: self.c_proj(y)",
        _projected_by(_output_by_transposed_weight),
    ),
    AttentionMistake(
        "residual-inside",
        8,
        "return x + self.c_proj(y)",
        "you add x, ({B}, {T}, {C}), to the merged heads or to the output; the block around the "
        "attention adds x",
        "which module adds the residual?",
        "return only the projection of the merged heads",
        _projected_by(
            lambda p, m: output(p, m) + p.x,
            lambda p, m: output(p, m + p.x),
        ),
    ),
    AttentionMistake(
        "merged-added-to-output",
        8,
        "return y + self.c_proj(y)",
        "you add the merged heads, ({B}, {T}, {C}), to the output of the projection",
        "the output projection and its dropout are the last operations",
        "return only the projection of the merged heads",
        _projected_by(lambda p, m: output(p, m) + m),
    ),
    AttentionMistake(
        "activation-on-output",
        8,
        "F.gelu(self.c_proj(y))",
        "your merged heads or your output, ({B}, {T}, {C}), go through a function that is not part "
        "of attention",
        "the output projection and its dropout are the last operations",
        "call c_proj without another function before or after it",
        _projected_by(
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
        "you multiply the merged heads or the output, ({B}, {T}, {C}), by a constant",
        "attention has no constant after the weighted sum",
        "apply c_proj to the merged heads themselves, and return its output unchanged",
        _projected_by(
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
        "y[:, -1:].expand(B, T, C)",
        "you use the output of one token for all {T} tokens",
        "every token has its own output",
        "keep the whole time dimension",
        _projected_by(lambda p, m: output(p, m)[:, -1:].expand(p.B, p.T, p.C)),
    ),
    AttentionMistake(
        "output-averaged-over-time",
        8,
        "y.mean(dim=1, keepdim=True).expand(B, T, C)",
        "you average the merged heads over the {T} tokens, so all tokens get the same output",
        "every token has its own output",
        "keep the whole time dimension",
        _projected_by(
            lambda p, m: output(p, m.mean(dim=1, keepdim=True)).expand(p.B, p.T, p.C),
        ),
    ),
    AttentionMistake(
        "output-backward",
        8,
        "y.flip(1)",
        "the {T} tokens of your output are in reverse order",
        "row 0 of the output belongs to token 0",
        "remove the flip",
        _projected_by(lambda p, m: output(p, m).flip(1)),
    ),
    AttentionMistake(
        "projection-of-x",
        8,
        "self.c_proj(x)",
        "your output projection takes x, ({B}, {T}, {C}), so nothing uses the result of your "
        "weighted sum",
        "what should the last layer mix?",
        "apply c_proj to the merged heads and return the result",
        _projected_by(lambda p, m: output(p, p.x)),
    ),
    AttentionMistake(
        "output-bias-per-head",
        8,
        "the bias is added once for each head",
        "you add the output projection's bias of shape ({C},) {H} times, once for each head",
        "how often does a linear layer add its bias?",
        "sum the heads first and add the bias once, or call self.c_proj(y)",
        _projected_by(lambda p, m: p.H * output(p, m) - (p.H - 1) * _output_without_bias(p, m)),
    ),
    AttentionMistake(
        "channels-backward",
        8,
        "y.flip(-1)",
        "the {C} channels of your merged heads are in reverse order",
        "head 0 comes first, beginning with its channel 0",
        "remove the flip",
        _merged_by(lambda p, m: merge(p, m).flip(-1)),
    ),
)
