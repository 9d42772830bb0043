"""Attention files in many styles of code, right ones and wrong ones.

A Change is one mistake: it replaces a text of a right file by another text. Each style that
contains the replaced text gives one wrong file, unless the Change is limited to other styles
(`only`).
"""

from __future__ import annotations

from dataclasses import dataclass

HEAD = """import math

import torch
from torch import nn
from torch.nn import functional as F


class CausalSelfAttention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.n_head = config.n_head
        self.dropout = config.dropout
"""
SEPARATE = """        self.query = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.key = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.value = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
"""
FUSED = """        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd, bias=config.bias)
"""
FORWARD = """        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.resid_dropout = nn.Dropout(config.dropout)

    def forward(self, x):
        B, T, C = x.shape
        H, D = self.n_head, C // self.n_head
"""
THREE = """        q = self.query(x)
        k = self.key(x)
        v = self.value(x)
"""
CHUNKED = """        q, k, v = self.c_attn(x).chunk(3, dim=-1)
"""
SPLIT = """        q = q.view(B, T, H, D).transpose(1, 2)
        k = k.view(B, T, H, D).transpose(1, 2)
        v = v.view(B, T, H, D).transpose(1, 2)
"""
FOLD = """        q = q.reshape(B * H, T, D)
        k = k.reshape(B * H, T, D)
        v = v.reshape(B * H, T, D)
"""
FILL = """        mask = torch.tril(torch.ones(T, T, device=x.device))
        scores = scores.masked_fill(mask == 0, float("-inf"))
"""
ADD = """        mask = torch.full((T, T), float("-inf"), device=x.device, dtype=x.dtype).triu(1)
        scores = scores + mask
"""
WHERE = """        at = torch.arange(T, device=x.device)
        scores = torch.where(at[:, None] >= at[None, :], scores, -1e9)
"""
SOFTMAX = """        weights = F.softmax(scores, dim=-1)
        weights = F.dropout(weights, self.dropout, self.training)
"""
BY_HAND = """        e = torch.exp(scores - scores.max(dim=-1, keepdim=True).values)
        weights = e / e.sum(dim=-1, keepdim=True)
"""
MERGE = """        y = y.transpose(1, 2).reshape(B, T, C)
"""
END = """        return self.resid_dropout(self.c_proj(y))
"""
UNFOLD = "        y = y.view(B, H, T, D)\n"

STYLES = {
    "skeleton": HEAD + SEPARATE + FORWARD + THREE + SPLIT + FOLD
    + "        scores = torch.bmm(q, k.transpose(1, 2)) / math.sqrt(D)\n"
    + "        scores = scores.view(B, H, T, T)\n" + FILL + SOFTMAX
    + "        weights = weights.view(B * H, T, T)\n"
    + "        y = torch.bmm(weights, v)\n" + UNFOLD + MERGE + END,
    "fused": HEAD + FUSED + FORWARD + CHUNKED + SPLIT
    + "        scores = q @ k.transpose(-2, -1) / math.sqrt(D)\n"
    + FILL + SOFTMAX + "        y = weights @ v\n" + MERGE + END,
    "einsum": HEAD + SEPARATE + FORWARD + THREE
    + "        q, k, v = (part.view(B, T, H, D) for part in (q, k, v))\n"
    + '        scores = torch.einsum("bthd,bshd->bhts", q, k) / math.sqrt(D)\n'
    + WHERE + SOFTMAX + '        y = torch.einsum("bhts,bshd->bthd", weights, v)\n'
    + "        y = y.reshape(B, T, C)\n" + END,
    "head_loop": HEAD + SEPARATE + FORWARD + THREE + '''        heads = []
        for h in range(H):
            qh = q[:, :, h * D : (h + 1) * D]
            kh = k[:, :, h * D : (h + 1) * D]
            vh = v[:, :, h * D : (h + 1) * D]
            scores = qh @ kh.transpose(-2, -1) / math.sqrt(D)
            mask = torch.tril(torch.ones(T, T, device=x.device))
            scores = scores.masked_fill(mask == 0, float("-inf"))
            weights = F.softmax(scores, dim=-1)
            heads.append(weights @ vh)
        y = torch.cat(heads, dim=-1)
''' + END,
    "bmm3d": HEAD + FUSED + FORWARD + CHUNKED
    + "        q, k, v = (\n"
    + "            part.reshape(B, T, H, D).permute(0, 2, 1, 3).reshape(B * H, T, D)"
    + "\n            for part in (q, k, v)\n        )\n"
    + "        scores = torch.bmm(q, k.mT) / math.sqrt(D)\n" + ADD + BY_HAND
    + "        y = torch.bmm(weights, v)\n" + UNFOLD + MERGE + END,
    "scaled_query": HEAD + SEPARATE + FORWARD + THREE + SPLIT
    + "        q = q / math.sqrt(D)\n        scores = q @ k.transpose(-2, -1)\n"
    + ADD + SOFTMAX + "        y = weights @ v\n" + MERGE + END,
    "sdpa": HEAD + FUSED + FORWARD + CHUNKED + SPLIT
    + "        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)\n" + MERGE + END,
    "sdpa_masked": HEAD + SEPARATE + FORWARD + THREE + SPLIT + '''
        mask = torch.tril(torch.ones(T, T, device=x.device)) == 1
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=1 / math.sqrt(D))
''' + MERGE + END,
    "heads_first": HEAD + FUSED + FORWARD
    + "        q, k, v = self.c_attn(x).view(B, T, 3, H, D).permute(2, 3, 0, 1, 4)\n"
    + "        scores = q @ k.transpose(-2, -1) / math.sqrt(D)\n" + WHERE + SOFTMAX
    + "        y = weights @ v\n        y = y.permute(1, 2, 0, 3).reshape(B, T, C)\n" + END,
    "token_loop": HEAD + SEPARATE + FORWARD + THREE + SPLIT + '''        y = torch.zeros_like(v)
        for t in range(T):
            past_k, past_v = k[:, :, : t + 1], v[:, :, : t + 1]
            scores = (q[:, :, t : t + 1] * past_k).sum(-1) / math.sqrt(D)
            weights = F.softmax(scores, dim=-1)
            y[:, :, t] = (weights[..., None] * past_v).sum(dim=2)
''' + MERGE + END,
    "batch_loop": HEAD + SEPARATE + FORWARD + '''        rows = []
        for b in range(B):
            q, k, v = (
                f(x[b]).view(T, H, D).transpose(0, 1) for f in (self.query, self.key, self.value)
            )
            scores = q @ k.transpose(-2, -1) / math.sqrt(D)
            mask = torch.tril(torch.ones(T, T, device=x.device))
            scores = scores.masked_fill(mask == 0, float("-inf"))
            weights = F.softmax(scores, dim=-1)
            rows.append((weights @ v).transpose(0, 1).reshape(T, C))
        y = torch.stack(rows)
''' + END,
}  # fmt: skip

NO = "raise NotImplementedError"


@dataclass(frozen=True)
class Change:
    """A mistake: `new` replaces `old` in every style that contains `old`.

    The report on a file with this mistake must name one of the `slugs`, which are separated by
    blanks ("*": any slug)."""

    name: str
    step: int
    slugs: str
    old: str
    new: str
    # The names of the styles in which the change is made, separated by blanks. "" stands for all.
    only: str = ""

    def texts(self) -> dict[str, str]:
        """Style -> the text of the wrong file in this style."""
        return {
            style: text.replace(self.old, self.new)
            for style, text in STYLES.items()
            if self.old in text and (not self.only or style in self.only.split())
        }


_V = "v = self.value(x)"
CHANGES = (
    Change("key_from_query", 1, "key-is-query", "k = self.key(x)", "k = self.query(x)"),
    Change("value_from_key", 1, "value-is-key", _V, "v = self.key(x)"),
    Change("value_is_x", 1, "not-projected", _V, "v = x"),
    Change(
        "first_sequence",
        1,
        "first-sequence-for-all",
        "k = self.key(x)",
        "k = self.key(x[:1]).expand(B, T, C).clone()",
    ),
    Change("shifted_v", 1, "tokens-shifted", _V, "v = self.value(x.roll(1, 1))"),
    Change("query_is_x", 1, "not-projected", "q = self.query(x)", "q = x"),
    Change("no_bias_v", 1, "projection-without-bias", _V, "v = x @ self.value.weight.T"),
    Change(
        "turned_k",
        1,
        "weight-transposed",
        "k = self.key(x)",
        "k = x @ self.key.weight + (0 if self.key.bias is None else self.key.bias)",
    ),
    Change("chained", 1, "projections-chained", "k = self.key(x)", "k = self.key(q)"),
    Change(
        "relu", 1, "activation-on-projections", "q = self.query(x)", "q = F.relu(self.query(x))"
    ),
    Change(
        "swapped_kq",
        1,
        "query-key-swapped",
        "q, k, v = self.c_attn(x).chunk",
        "k, q, v = self.c_attn(x).chunk",
    ),
    Change(
        "swapped_kv",
        1,
        "key-value-swapped",
        "q, k, v = self.c_attn(x).chunk",
        "q, v, k = self.c_attn(x).chunk",
    ),
    Change(
        "rotated",
        1,
        "qkv-rotated",
        "q, k, v = self.c_attn(x).chunk",
        "v, q, k = self.c_attn(x).chunk",
    ),
    Change(
        "swapped_names",
        1,
        "query-key-swapped",
        "q = self.query(x)\n        k = self.key(x)",
        "k = self.query(x)\n        q = self.key(x)",
    ),
    Change(
        "by_head",
        1,
        "fused-cut-wrongly",
        "self.c_attn(x).chunk(3, dim=-1)",
        "(t.reshape(B, T, C) for t in self.c_attn(x).view(B, T, H, 3, D).unbind(3))",
    ),
    Change("no_projection_yet", 1, "not-implemented", "k = self.key(x)", NO),
    Change(
        "view_only",
        2,
        "split-without-transpose",
        "view(B, T, H, D).transpose(1, 2)",
        "reshape(B, H, T, D)",
    ),
    Change(
        "view_only_v",
        2,
        "split-without-transpose",
        "v = v.view(B, T, H, D).transpose(1, 2)",
        "v = v.reshape(B, H, T, D)",
    ),
    Change(
        "interleaved",
        2,
        "heads-interleaved",
        "view(B, T, H, D).transpose(1, 2)",
        "reshape(B, T, D, H).permute(0, 3, 1, 2)",
    ),
    Change(
        "interleaved_einsum",
        2,
        "heads-interleaved",
        "part.view(B, T, H, D) for",
        "part.view(B, T, D, H).transpose(2, 3) for",
    ),
    Change(
        "swapped_dims",
        2,
        "heads-and-channels-swapped",
        "view(B, T, H, D).transpose(1, 2)",
        "reshape(B, T, D, H).transpose(1, 2)",
        "fused scaled_query sdpa sdpa_masked",
    ),
    Change(
        "no_transpose_4d",
        2,
        "*",
        "view(B, T, H, D).transpose(1, 2)",
        "view(B, T, H, D)",
        "fused scaled_query skeleton",
    ),
    Change("first_slice", 2, "first-head-only", "q[:, :, h * D : (h + 1) * D]", "q[:, :, :D]"),
    Change("strided_slice", 2, "*", "k[:, :, h * D : (h + 1) * D]", "k[:, :, h::H]"),
    Change("overlapping", 2, "*", "v[:, :, h * D : (h + 1) * D]", "v[:, :, h : h + D]"),
    Change("bad_view", 2, "raises", "k = k.view(B, T, H, D)", "k = k.view(B, T, H, H)"),
    Change("no_split_yet", 2, "not-implemented", "q = q.view(B, T, H, D).transpose(1, 2)", NO),
    Change("fixed_batch", 2, "raises", "view(B, T, H, D)", "view(2, T, H, D)"),
    Change(
        "fold_order",
        3,
        "folded-in-two-orders",
        "k = k.reshape(B * H, T, D)",
        "k = k.transpose(0, 1).reshape(B * H, T, D)",
    ),
    Change(
        "fold_order_v",
        3,
        "folded-in-two-orders",
        "v = v.reshape(B * H, T, D)",
        "v = v.transpose(0, 1).reshape(B * H, T, D)",
    ),
    Change(
        "fold_scrambled",
        3,
        "folded-across-time",
        "q = q.reshape(B * H, T, D)",
        "q = q.reshape(B * H, D, T).transpose(1, 2)",
    ),
    Change("fold_view", 3, "raises", "q = q.reshape(B * H, T, D)", "q = q.view(B * H, T, D)"),
    Change("fold_missing", 3, "raises", FOLD, ""),
    Change("fold_half", 3, "raises", "        k = k.reshape(B * H, T, D)\n", ""),
    Change(
        "fold_heads_first",
        3,
        "folded-heads-first",
        FOLD,
        FOLD.replace("reshape(B", "transpose(0, 1).reshape(B"),
    ),
    Change("no_fold_yet", 3, "not-implemented", "q = q.reshape(B * H, T, D)", NO),
    Change(
        "no_fold_permute",
        2,
        "split-without-transpose",
        "part.reshape(B, T, H, D).permute(0, 2, 1, 3).reshape",
        "part.reshape(B, T, H, D).reshape",
    ),
    Change("sqrt_c", 4, "scale-sqrt-n-embd", "math.sqrt(D)", "math.sqrt(C)"),
    Change("no_scale", 4, "scale-missing", " / math.sqrt(D)", " / 1"),
    Change("no_root", 4, "scale-without-root", "math.sqrt(D)", "D"),
    Change("times_root", 4, "scale-multiplied", " / math.sqrt(D)", " * math.sqrt(D)"),
    Change("sqrt_t", 4, "scale-sqrt-t", "math.sqrt(D)", "math.sqrt(T)"),
    Change("sqrt_h", 4, "scale-sqrt-n-head", "math.sqrt(D)", "math.sqrt(H)"),
    Change("divided_by_h", 4, "scale-n-head", "math.sqrt(D)", "H"),
    Change("scale_3", 4, "scale-wrong", "math.sqrt(D)", "3.3"),
    Change(
        "visible_keys",
        4,
        "scale-by-visible-keys",
        "/ math.sqrt(D)",
        "/ torch.arange(1, T + 1)[:, None] ** 0.5",
        "fused einsum head_loop heads_first",
    ),
    Change(
        "distances",
        4,
        "scores-of-distances",
        "scores = q @ k.transpose(-2, -1)",
        "scores = -torch.cdist(q, k)",
        "fused scaled_query heads_first batch_loop",
    ),
    Change("shared_scores", 4, "scores-shared-by-heads", '"bthd,bshd->bhts"', '"bthd,bsgd->bhts"'),
    Change(
        "negative",
        4,
        "scale-negative",
        "scores = q @ k.transpose(-2, -1)",
        "scores = -q @ k.transpose(-2, -1)",
        "fused scaled_query heads_first batch_loop",
    ),
    Change("scale_8", 4, "scale-wrong", "math.sqrt(D)", "8.0"),
    Change("scale_half", 4, "scale-wrong", "math.sqrt(D)", "(D // 2)", "skeleton fused einsum"),
    Change("query_doubled", 4, "scale-wrong", "q = q / math", "q = 2 * q / math"),
    Change("scale_t", 4, "scale-t", "math.sqrt(D)", "T"),
    Change("times_d", 4, "scale-multiplied-head-dim", " / math.sqrt(D)", " * D"),
    Change(
        "key_view",
        4,
        "key-viewed-not-transposed",
        "k.transpose(-2, -1)",
        "k.reshape(*k.shape[:-2], k.shape[-1], k.shape[-2])",
    ),
    Change("k_by_q", 4, "scores-transposed", "q @ k.transpose(-2, -1)", "k @ q.transpose(-2, -1)"),
    Change("q_by_q", 4, "query-with-itself", "q @ k.transpose(-2, -1)", "q @ q.transpose(-2, -1)"),
    Change("untransposed_key", 4, "raises", "q @ k.transpose(-2, -1)", "q @ k"),
    Change(
        "scale_late",
        4,
        "scale-after-softmax",
        SOFTMAX,
        "        weights = F.softmax(scores * D**0.5, dim=-1) / D**0.5\n",
    ),
    Change("bad_unfold_scores", 4, "raises", "scores.view(B, H, T, T)", "scores.view(B, H, T, D)"),
    Change(
        "no_scores_yet", 4, "not-implemented", "scores = torch.bmm(q, k.transpose(1, 2))", NO + " #"
    ),
    Change(
        "no_unfold_yet",
        4,
        "not-implemented",
        "        scores = scores.view(B, H, T, T)",
        "        # 4. unfold the scores\n        " + NO,
    ),
    Change("no_mask", 5, "mask-missing", "mask == 0", "mask < 0"),
    Change("no_mask_where", 5, "mask-missing", "at[:, None] >= at[None, :]", "at[:, None] >= 0"),
    Change("no_causal", 5, "mask-missing", ", is_causal=True", ""),
    Change("no_attn_mask", 5, "mask-missing", "attn_mask=mask, ", ""),
    Change("no_mask_added", 5, "mask-missing", "        scores = scores + mask\n", ""),
    Change("inverted", 5, "mask-inverted", "mask == 0", "mask == 1"),
    Change(
        "inverted_where",
        5,
        "mask-inverted",
        "at[:, None] >= at[None, :]",
        "at[:, None] <= at[None, :]",
    ),
    Change("inverted_sdpa", 5, "mask-inverted", "attn_mask=mask", "attn_mask=mask.T"),
    Change("inverted_added", 5, "mask-inverted", ".triu(1)", ".triu(1).T"),
    Change(
        "next_token",
        5,
        "mask-lets-next-token-in",
        "torch.ones(T, T, device=x.device)",
        "torch.ones(T, T, device=x.device), diagonal=1",
    ),
    Change(
        "next_token_where",
        5,
        "mask-lets-next-token-in",
        "at[:, None] >= at[None, :]",
        "at[:, None] >= at[None, :] - 1",
    ),
    Change("next_token_added", 5, "mask-lets-next-token-in", ".triu(1)", ".triu(2)"),
    Change(
        "no_self",
        5,
        "mask-hides-diagonal",
        "torch.ones(T, T, device=x.device)",
        "torch.ones(T, T, device=x.device), diagonal=-1",
    ),
    Change(
        "no_self_where",
        5,
        "mask-hides-diagonal",
        "at[:, None] >= at[None, :]",
        "at[:, None] > at[None, :]",
    ),
    Change(
        "no_self_added",
        5,
        "mask-hides-diagonal",
        'float("-inf"), device=x.device, dtype=x.dtype).triu(1)',
        "-1e9, device=x.device, dtype=x.dtype).triu(0)",
    ),
    Change("fill_0", 5, "mask-filled-with-0", '(mask == 0, float("-inf"))', "(mask == 0, 0)"),
    Change("fill_1e_9", 5, "mask-fill-tiny", '(mask == 0, float("-inf"))', "(mask == 0, 1e-9)"),
    Change("fill_m7", 5, "mask-fill-too-weak", '(mask == 0, float("-inf"))', "(mask == 0, -7)"),
    Change("fill_where", 5, "mask-filled-with-0", "scores, -1e9)", "scores, 0.0)"),
    Change("fill_weak_where", 5, "mask-fill-too-weak", "scores, -1e9)", "scores, -50.0)"),
    Change(
        "multiplied",
        5,
        "mask-filled-with-0",
        'scores = scores.masked_fill(mask == 0, float("-inf"))',
        "scores = scores * mask",
    ),
    Change(
        "added_01",
        5,
        "mask-added-as-0-and-1",
        'scores = scores.masked_fill(mask == 0, float("-inf"))',
        "scores = scores + mask",
    ),
    Change(
        "first_hidden",
        5,
        "mask-hides-first-token",
        "mask == 0,",
        "(mask == 0) | ((torch.arange(T) == 0) & (torch.arange(T) > 0)[:, None]),",
    ),
    Change(
        "next_only_hidden",
        5,
        "mask-hides-next-token-only",
        "mask == 0,",
        "(mask == 0).tril(1),",
        "skeleton fused head_loop",
    ),
    Change(
        "added_minus_1",
        5,
        "mask-added-too-weak",
        'scores = scores.masked_fill(mask == 0, float("-inf"))',
        "scores = scores - (1 - mask)",
    ),
    Change(
        "zero_inf",
        5,
        "mask-zero-times-infinity",
        'scores = scores.masked_fill(mask == 0, float("-inf"))',
        'scores = scores + (1 - mask) * float("-inf")',
    ),
    Change("times_added", 5, "mask-multiplied", "scores = scores + mask", "scores = scores * mask"),
    Change(
        "after_softmax",
        5,
        "mask-after-softmax",
        FILL + SOFTMAX,
        "        weights = "
        "F.softmax(scores, dim=-1)\n        weights = weights * torch.ones(T, T).tril()\n",
    ),
    Change(
        "one_head",
        5,
        "mask-on-one-head",
        '        scores = scores.masked_fill(mask == 0, float("-inf"))',
        '        scores[:, 0] = scores[:, 0].masked_fill(mask == 0, float("-inf"))',
        "skeleton fused",
    ),
    Change(
        "one_sequence",
        5,
        "mask-on-one-sequence",
        '        scores = scores.masked_fill(mask == 0, float("-inf"))',
        '        scores[0] = scores[0].masked_fill(mask == 0, float("-inf"))',
        "skeleton fused",
    ),
    Change(
        "fixed_length",
        5,
        "raises",
        "torch.tril(torch.ones(T, T, ",
        "torch.tril(torch.ones(11, 11, ",
    ),
    Change("discarded", 5, "mask-missing", "scores = scores.masked_fill", "scores.masked_fill"),
    Change(
        "no_mask_yet",
        5,
        "not-implemented",
        "        scores = scores.masked_fill(mask",
        f"        {NO}\n        scores = scores.masked_fill(mask",
        "skeleton fused",
    ),
    Change(
        "dim_minus_2",
        6,
        "softmax-over-queries",
        "F.softmax(scores, dim=-1)",
        "F.softmax(scores, dim=-2)",
        "skeleton fused einsum head_loop scaled_query heads_first batch_loop",
    ),
    Change(
        "dim_1",
        6,
        "softmax-over-heads",
        "F.softmax(scores, dim=-1)",
        "F.softmax(scores, dim=1)",
        "skeleton fused einsum scaled_query",
    ),
    Change(
        "dim_0",
        6,
        "softmax-over-batch",
        "F.softmax(scores, dim=-1)",
        "F.softmax(scores, dim=0)",
        "skeleton fused einsum scaled_query",
    ),
    Change(
        "no_softmax",
        6,
        "softmax-missing",
        "F.softmax(scores, dim=-1)",
        "scores",
        "skeleton fused einsum head_loop scaled_query",
    ),
    Change(
        "sigmoid", 6, "sigmoid-for-softmax", "F.softmax(scores, dim=-1)", "torch.sigmoid(scores)"
    ),
    Change(
        "log_softmax",
        6,
        "log-softmax",
        "F.softmax(scores, dim=-1)",
        "F.log_softmax(scores, dim=-1)",
        "einsum heads_first",
    ),
    Change(
        "only_exp", 6, "softmax-not-normalised", "F.softmax(scores, dim=-1)", "torch.exp(scores)"
    ),
    Change(
        "hand_bare",
        6,
        "softmax-not-normalised",
        "e / e.sum(dim=-1, keepdim=True)",
        "e",
    ),
    Change(
        "hand_more",
        6,
        "softmax-denominator-larger",
        "e.sum(dim=-1, keepdim=True)",
        "(1 + e.sum(dim=-1, keepdim=True))",
    ),
    Change("hand_norm", 6, "softmax-by-length", "e / e.sum(", "e / e.norm("),
    Change(
        "relu_shares",
        6,
        "relu-for-exp",
        "F.softmax(scores, dim=-1)",
        "scores.relu() / (scores.relu().sum(-1, keepdim=True) + 1e-9)",
        "skeleton fused einsum head_loop",
    ),
    Change(
        "sigmoid_shares",
        6,
        "sigmoid-for-exp",
        "F.softmax(scores, dim=-1)",
        "scores.sigmoid() / scores.sigmoid().sum(-1, keepdim=True)",
        "fused einsum scaled_query",
    ),
    Change(
        "base_2",
        6,
        "softmax-of-powers-of-2",
        "F.softmax(scores, dim=-1)",
        "F.softmax(scores * math.log(2), dim=-1)",
        "fused heads_first",
    ),
    Change(
        "hand_dim",
        6,
        "softmax-over-queries",
        "e.sum(dim=-1, keepdim=True)",
        "e.sum(dim=-2, keepdim=True)",
    ),
    Change(
        "hand_all",
        6,
        "softmax-over-everything",
        "e / e.sum(dim=-1, keepdim=True)",
        "torch.exp(scores) / torch.exp(scores).sum()",
    ),
    Change(
        "twice",
        6,
        "softmax-twice",
        "F.softmax(scores, dim=-1)",
        "F.softmax(F.softmax(scores, dim=-1), dim=-1)",
        "skeleton fused einsum head_loop scaled_query",
    ),
    Change(
        "dropout_always",
        6,
        "dropout-in-evaluation",
        "self.dropout, self.training)",
        "self.dropout)",
    ),
    Change(
        "dropout_sdpa",
        6,
        "dropout-in-evaluation",
        "is_causal=True",
        "is_causal=True, dropout_p=self.dropout",
    ),
    Change(
        "detached_weights",
        6,
        "no-gradient",
        "F.softmax(scores, dim=-1)",
        "F.softmax(scores, dim=-1).detach()",
    ),
    Change("no_softmax_yet", 6, "not-implemented", "weights = F.softmax(scores, dim=-1)", NO),
    Change(
        "weights_turned", 7, "weights-transposed", "weights @ v", "weights.transpose(-2, -1) @ v"
    ),
    Change("values_rolled", 7, "values-shifted", "y = weights @ v", "y = weights @ v.roll(1, -2)"),
    Change("values_flipped", 7, "values-backward", "y = weights @ v", "y = weights @ v.flip(-2)"),
    Change(
        "values_first",
        7,
        "values-of-one-sequence values-of-one-head",
        "= weights @ v\n",
        "= weights @ v[:1]\n",
    ),
    Change("times_key", 7, "weights-times-keys", "y = weights @ v", "y = weights @ k"),
    Change("no_weights", 7, "values-not-weighted", "y = weights @ v", "y = v"),
    Change("bmm_key", 7, "weights-times-keys", "torch.bmm(weights, v)", "torch.bmm(weights, k)"),
    Change("mean", 7, "mixed-divided-by-t", "y = weights @ v", "y = weights @ v / T"),
    Change(
        "einsum_turned",
        7,
        "weights-transposed",
        '"bhts,bshd->bthd", weights',
        '"bhst,bshd->bthd", weights',
    ),
    Change("bad_unfold", 7, "raises", "y = y.view(B, H, T, D)", "y = y.view(B, H, T, T)"),
    Change(
        "unfold_order",
        7,
        "unfolded-in-another-order",
        "y = y.view(B, H, T, D)",
        "y = y.view(H, B, T, D).transpose(0, 1)",
    ),
    Change("no_mix_yet", 7, "not-implemented", "y = torch.bmm(weights, v)", NO),
    Change(
        "no_transpose",
        8,
        "merge-without-transpose",
        "y.transpose(1, 2).reshape(B, T, C)",
        "y.reshape(B, T, C)",
    ),
    Change(
        "merge_view",
        8,
        "raises",
        "y.transpose(1, 2).reshape(B, T, C)",
        "y.transpose(1, 2).view(B, T, C)",
        "skeleton fused bmm3d scaled_query",
    ),
    Change(
        "merge_interleaved",
        8,
        "merge-interleaved",
        "y.transpose(1, 2).reshape(B, T, C)",
        "y.permute(0, 2, 3, 1).reshape(B, T, C)",
    ),
    Change(
        "merge_time_first",
        8,
        "merge-in-another-order",
        "y.transpose(1, 2).reshape(B, T, C)",
        "y.permute(2, 0, 1, 3).reshape(B, T, C)",
    ),
    Change("not_merged", 8, "output-shape raises", MERGE, ""),
    Change(
        "averaged",
        8,
        "heads-averaged",
        "y.transpose(1, 2).reshape(B, T, C)",
        "y.mean(1).repeat(1, 1, H)",
    ),
    Change(
        "reversed_cat",
        8,
        "heads-in-wrong-order",
        "torch.cat(heads, dim=-1)",
        "torch.cat(heads[::-1], dim=-1)",
    ),
    Change(
        "one_head_out",
        8,
        "one-head-for-all",
        "torch.cat(heads, dim=-1)",
        "torch.cat(heads, dim=1)[:, :T].repeat(1, 1, H)",
    ),
    Change("summed", 8, "raises", "torch.cat(heads, dim=-1)", "sum(heads)"),
    Change("c_proj_of_x", 8, "projection-of-x", "self.c_proj(y)", "self.c_proj(x)"),
    Change("no_c_proj", 8, "projection-left-out", "self.c_proj(y)", "y"),
    Change("twice_c_proj", 8, "projection-twice", "self.c_proj(y)", "self.c_proj(self.c_proj(y))"),
    Change("residual", 8, "residual-inside", "self.c_proj(y)", "self.c_proj(y) + x"),
    Change("added_heads", 8, "merged-added-to-output", "self.c_proj(y)", "self.c_proj(y) + y"),
    Change("flipped", 8, "output-backward", "self.c_proj(y)", "self.c_proj(y).flip(1)"),
    Change(
        "mean_token",
        8,
        "output-averaged-over-time",
        "self.c_proj(y)",
        "self.c_proj(y.mean(1, keepdim=True)).expand(B, T, C)",
    ),
    Change("gelu", 8, "activation-on-output", "self.c_proj(y)", "F.gelu(self.c_proj(y))"),
    Change(
        "wrong_layer",
        8,
        "another-projection",
        "self.c_proj(y)",
        "self.value(y)",
        "skeleton einsum scaled_query",
    ),
    Change(
        "out_dropout",
        8,
        "dropout-in-evaluation",
        "return self.resid_dropout(self.c_proj(y))",
        "return F.dropout(self.c_proj(y), self.dropout)",
    ),
    Change("detached_out", 8, "no-gradient", "self.c_proj(y)", "self.c_proj(y).detach()"),
    Change(
        "returns_none",
        8,
        "returns-nothing",
        "return self.resid_dropout(",
        "(",
        "skeleton fused einsum",
    ),
    Change("no_end_yet", 8, "not-implemented", "return self.resid_dropout(self.c_proj(y))", NO),
    # The next Change makes two mistakes, in steps 4 and 8. The report names the earlier step.
    Change(
        "no_scale_no_proj",
        4,
        "scale-missing",
        " / math.sqrt(D)",
        " / 1\n        self.c_proj = nn.Identity()",
        "skeleton fused",
    ),
)

# Pairs of Changes that are made together in one file. The report names the first Change of the
# pair, which has the earlier step.
PAIRS = (
    ("sqrt_c", "dim_minus_2"),
    ("no_scale", "no_mask"),
    ("view_only", "no_c_proj"),
    ("key_from_query", "sqrt_c"),
    ("no_mask", "no_transpose"),
    ("inverted", "no_c_proj"),
    ("sqrt_c", "no_transpose"),
    ("dim_1", "residual"),
    ("interleaved", "sqrt_c"),
    ("fold_order", "no_mask"),
    ("value_is_x", "no_mask"),
    ("weights_turned", "no_c_proj"),
)


def wrong_files() -> dict[str, tuple[str, Change]]:
    """File name -> the text of a wrong file, and the Change that the report on it must name."""
    files = {
        f"{style}__{change.name}": (text, change)
        for change in CHANGES
        for style, text in change.texts().items()
    }
    by_name = {change.name: change for change in CHANGES}
    for first, second in PAIRS:
        one, two = by_name[first], by_name[second]
        for style, text in one.texts().items():
            if two.old in text:
                files[f"{style}__{first}__{second}"] = (text.replace(two.old, two.new), one)
    return files
