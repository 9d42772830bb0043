"""Right and wrong files of the exercise `modern`, most of them made from one template."""

from __future__ import annotations

from typing import Any

BASE = """import math

import torch
import torch.nn.functional as F
from torch import nn


class RMSNorm(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(config.n_embd))
        self.eps = 1e-6

    def forward(self, x):
        square = (x ** 2).mean(dim=-1, keepdim=True)
        normal = x / torch.sqrt(square + self.eps)
        return normal * self.weight


def rotary_angles(head_dim, length):
    positions = torch.arange(length).float()
    frequencies = 10000 ** (-torch.arange(0, head_dim, 2) / head_dim)
    angles = torch.outer(positions, frequencies)
    return angles.cos(), angles.sin()


def rotate(x, cos, sin):
    cos, sin = cos.to(x), sin.to(x)
    a, b = x.chunk(2, dim=-1)
    first = a * cos - b * sin
    second = b * cos + a * sin
    return torch.cat((first, second), dim=-1)


class GroupedQueryAttention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.n_head = config.n_head
        self.n_kv_head = config.n_kv_head
        self.head_dim = config.n_embd // config.n_head
        self.query = nn.Linear(config.n_embd, config.n_embd, bias=False)
        self.key = nn.Linear(config.n_embd, self.n_kv_head * self.head_dim, bias=False)
        self.value = nn.Linear(config.n_embd, self.n_kv_head * self.head_dim, bias=False)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=False)

    def forward(self, x, start=0):
        B, T, C = x.shape
        D = self.head_dim
        q = self.query(x).view(B, T, self.n_head, D).transpose(1, 2)
        k = self.key(x).view(B, T, self.n_kv_head, D).transpose(1, 2)
        v = self.value(x).view(B, T, self.n_kv_head, D).transpose(1, 2)
        cos, sin = rotary_angles(D, start + T)
        cos, sin = cos[start:], sin[start:]
        q = rotate(q, cos, sin)
        k = rotate(k, cos, sin)
        group = self.n_head // self.n_kv_head
        k = k.repeat_interleave(group, dim=1)
        v = v.repeat_interleave(group, dim=1)
        scores = q @ k.transpose(-2, -1) / math.sqrt(D)
        future = torch.ones(T, T, dtype=torch.bool, device=x.device).triu(1)
        weights = F.softmax(scores.masked_fill(future, float("-inf")), dim=-1)
        y = (weights @ v).transpose(1, 2).reshape(B, T, C)
        return self.c_proj(y)
"""

SQUARE = "(x ** 2).mean(dim=-1, keepdim=True)"
NORMAL = "x / torch.sqrt(square + self.eps)"
GAIN = "return normal * self.weight"
FREQ = "10000 ** (-torch.arange(0, head_dim, 2) / head_dim)"
POS = "torch.arange(length).float()"
TABLES = "return angles.cos(), angles.sin()"
A, B = "a * cos - b * sin", "b * cos + a * sin"
HALVES = "a, b = x.chunk(2, dim=-1)"
CAT = "return torch.cat((first, second), dim=-1)"
TO = "    cos, sin = cos.to(x), sin.to(x)\n"
FROM = "cos, sin = cos[start:], sin[start:]"
Q, K = "q = rotate(q, cos, sin)", "k = rotate(k, cos, sin)"
KK, VV = "k = k.repeat_interleave(group, dim=1)", "v = v.repeat_interleave(group, dim=1)"
SPLIT = ".view(B, T, self.n_head, D).transpose(1, 2)"
KEY = "self.key = nn.Linear(config.n_embd, self.n_kv_head * self.head_dim, bias=False)"
SOFTMAX = 'F.softmax(scores.masked_fill(future, float("-inf")), dim=-1)'
MERGE = "(weights @ v).transpose(1, 2).reshape(B, T, C)"

# The mistakes. An entry holds the slug of the mistake, the step that is wrong, and then pairs: a
# text of the template BASE, and the text that replaces it.
WRONG: list[tuple[Any, ...]] = [
    ("gain-after-rotation", 4, "        q = rotate(q, cos, sin)\n        k = rotate(k, cos, sin)\n",
     "        q = rotate(q, cos, sin)\n        k = rotate(k, cos, sin)\n"
     "        q, k = self.q_norm(q), self.k_norm(k)\n",
     "        self.c_proj = nn", "        self.q_norm = nn.RMSNorm(self.head_dim, eps=1e-6)\n"
     "        self.k_norm = nn.RMSNorm(self.head_dim, eps=1e-6)\n        self.c_proj = nn"),
    ("missing-gain", 1, "nn.Parameter(torch.ones(config.n_embd))", "torch.ones(config.n_embd)"),
    ("gain-not-ones", 1, "torch.ones(config", "torch.zeros(config"),
    ("has-bias", 1, "        self.eps", "        self.bias = nn.Parameter("
     "torch.zeros(config.n_embd))\n        self.eps", GAIN, GAIN + " + self.bias"),
    ("mean-subtracted", 1, "        square", "        x = x - x.mean(-1, keepdim=True)\n"
     "        square"),
    ("variance-for-squares", 1, SQUARE, "x.var(dim=-1, keepdim=True)"),
    ("variance-for-squares", 1, "torch.sqrt(square + self.eps)",
     "(x.std(-1, keepdim=True) + self.eps)"),
    ("sum-for-mean", 1, ".mean(dim=-1", ".sum(dim=-1"),
    ("sum-for-mean", 1, NORMAL, "F.normalize(x, dim=-1)"),
    ("root-of-c-wrong", 1, NORMAL, "x / (x.norm(dim=-1, keepdim=True) / x.shape[-1] + 1e-6)"),
    ("not-squared", 1, "(x ** 2)", "x.abs()"),
    ("no-root", 1, "torch.sqrt(square + self.eps)", "(square + self.eps)"),
    ("multiplied-by-root", 1, "x / torch", "x * torch"),
    ("eps-outside", 1, "torch.sqrt(square + self.eps)", "(torch.sqrt(square) + self.eps)"),
    ("no-eps", 1, "square + self.eps", "square"),
    ("eps-as-minimum", 1, "square + self.eps", "square.clamp(min=self.eps)"),
    ("another-eps", 1, "1e-6", "1e-5"),
    ("another-eps", 1, "1e-6", "1e-8"),
    ("over-time", 1, "dim=-1, keepdim", "dim=1, keepdim"),
    ("over-batch", 1, "dim=-1, keepdim", "dim=0, keepdim"),
    ("over-everything", 1, "dim=-1, keepdim=True", ""),
    ("no-gain", 1, GAIN, "return normal"),
    ("gain-added", 1, GAIN, "return normal + self.weight"),
    ("gain-divides", 1, GAIN, "return normal / self.weight"),
    ("gain-plus-one", 1, GAIN, "return normal * (1 + self.weight)"),
    ("gain-before-norm", 1, "        square", "        x = x * self.weight\n        square",
     GAIN, "return normal"),
    ("input-changed", 1, "normal = " + NORMAL, "normal = x.div_(torch.sqrt(square + self.eps))"),
    ("no-gradient", 1, "square = " + SQUARE, "square = (x.detach() ** 2).mean(-1, keepdim=True)"),
    ("dropout-in-evaluation", 1, GAIN, "return F.dropout(normal * self.weight, 0.5)"),
    ("changes-in-training", 1, GAIN, "return F.dropout(normal * self.weight, 0.5, self.training)"),
    ("dtype-changed", 1, SQUARE, "(x.float() ** 2).mean(dim=-1, keepdim=True)"),
    ("not-implemented", 1, GAIN, "raise NotImplementedError"),
    ("degrees", 2, TABLES, "angles = torch.deg2rad(angles)\n    " + TABLES),
    ("turns", 2, "torch.outer(", "2 * math.pi * torch.outer("),
    ("too-many-frequencies", 2, "torch.arange(0, head_dim, 2)", "torch.arange(head_dim)"),
    ("exponent-not-doubled", 2, "torch.arange(0, head_dim, 2)", "torch.arange(head_dim // 2)"),
    ("exponent-doubled-twice", 2, "-torch.arange(0, head_dim, 2)",
     "-2 * torch.arange(0, head_dim, 2)"),
    ("exponent-positive", 2, "(-torch.arange(0", "(torch.arange(0"),
    ("frequencies-reversed", 2, FREQ, FREQ + "\n    frequencies = frequencies.flip(0)"),
    ("last-frequency", 2, FREQ, "10000 ** -torch.linspace(0, 1, head_dim // 2)"),
    ("another-theta", 2, "10000 **", "1000 **"),
    ("one-frequency", 2, "/ head_dim)", "// head_dim)"),
    ("linear-frequencies", 2, FREQ, "1 / torch.arange(1, head_dim // 2 + 1)"),
    ("positions-from-one", 2, POS, "torch.arange(1, length + 1).float()"),
    ("positions-reversed", 2, POS, POS + ".flip(0)"),
    ("positions-scaled", 2, POS, POS + " / length"),
    ("sine-and-cosine-swapped", 2, TABLES, "return angles.sin(), angles.cos()"),
    ("sine-negative", 2, "angles.sin()", "-angles.sin()"),
    ("no-cosine", 2, TABLES, "return angles, angles"),
    ("interleaved-angles", 2, TABLES, "angles = angles.repeat_interleave(2, dim=-1)\n    "
     + TABLES),
    ("without-positions", 2, "torch.outer(positions, frequencies)", "frequencies"),
    ("tables-transposed", 2, "outer(positions, frequencies)", "outer(frequencies, positions)"),
    ("another-length", 2, "torch.arange(length)", "torch.arange(length + 1)"),
    ("low-precision", 2, "torch.outer(positions, frequencies)",
     "torch.outer(positions, frequencies).bfloat16()"),
    ("tables-rounded", 2, TABLES, "return angles.cos().bfloat16(), angles.sin().bfloat16()"),
    ("result-of-earlier-call", 2, TABLES, "return KEPT.setdefault(head_dim, (angles.cos(), "
     "angles.sin()))", "def rotary_angles", "KEPT = {}\n\n\ndef rotary_angles"),
    ("no-pair", 2, TABLES, "return angles"),
    ("complex-numbers", 2, TABLES, "return torch.polar(torch.ones_like(angles), angles)"),
    ("wrong-result", 2, POS, "torch.arange(length).float() ** 2"),
    ("not-implemented", 2, TABLES, "raise NotImplementedError"),
    ("missing", 2, "def rotary_angles(", "def angles_for("),
    ("interleaved", 3, HALVES, "a, b = x[..., ::2], x[..., 1::2]", CAT,
     "return torch.stack((first, second), dim=-1).flatten(-2)"),
    ("interleaved-with-halves", 3, TO + "    " + HALVES, TO + "    "
     "a, b = x[..., ::2], x[..., 1::2]\n"
     "    turned = torch.stack((-b, a), dim=-1).flatten(-2)\n"
     "    return x * torch.cat((cos, cos), -1) + turned * torch.cat((sin, sin), -1)"),
    ("halves-with-interleaved", 3, CAT, "return torch.stack((first, second), dim=-1).flatten(-2)"),
    ("interleaved-with-cat", 3, HALVES, "a, b = x[..., ::2], x[..., 1::2]"),
    ("sine-sign", 3, A, "a * cos + b * sin", B, "b * cos - a * sin"),
    ("no-minus", 3, A, "a * cos + b * sin"),
    ("own-half", 3, A, "a * cos - a * sin", B, "b * cos + b * sin"),
    ("cosine-for-sine", 3, A, "a * sin - b * cos", B, "b * sin + a * cos"),
    ("half-overwritten", 3, "first = a", "a = a", "(first, second)", "(a, second)"),
    ("halves-swapped", 3, "(first, second)", "(second, first)"),
    ("half-rotated", 3, "(first, second)", "(first, b)"),
    ("not-rotated", 3, CAT, "return x"),
    ("rotated-over-heads", 3, TO, TO + "    cos, sin = cos[:, None], sin[:, None]\n"),
    ("rotated-over-batch", 3, TO, TO + "    cos, sin = cos[:, None, None], sin[:, None, None]\n"),
    ("half-lost", 3, CAT, "return first + second"),
    ("dtype-changed", 3, TO, ""),
    ("x-changed", 3, CAT, "x[..., : x.shape[-1] // 2] = first\n    " + CAT),
    ("rotation-without-gradient", 3, HALVES, "a, b = x.detach().chunk(2, dim=-1)"),
    ("wrong-result", 3, B, "b * cos + a * sin ** 2"),
    ("no-tensor", 3, CAT, "return first, second"),
    ("raises", 3, HALVES, "a, b = x.chunk(3, dim=-1)"),
    ("missing-projection", 4, "self.c_proj = ", "self.last = ", "self.c_proj(", "self.last("),
    ("no-start", 4, ", start=0", "", "start + T", "T", "        " + FROM + "\n", ""),
    ("start-ignored", 4, FROM, "cos, sin = cos[:T], sin[:T]"),
    ("start-of-one", 4, FROM, "early, cos, sin = (cos[:T], sin[:T]), cos[start:], sin[start:]",
     K, "k = rotate(k, *early)"),
    ("start-of-one", 4, FROM, "early, cos, sin = (cos[:T], sin[:T]), cos[start:], sin[start:]",
     K, "k = rotate(k, *early)", "scores = ",
     'raise NotImplementedError("step 6")\n        scores = '),
    ("start-stops", 4, "start + T", "T"),
    ("values-rotated", 4, K, K + "\n        v = rotate(v, cos, sin)"),
    ("queries-only", 4, K, "pass"),
    ("keys-only", 4, Q, "pass"),
    ("never-rotated", 4, Q, "rotate(q, cos, sin)", K, "rotate(k, cos, sin)"),
    ("values-for-keys-rotated", 4, K, "v = rotate(v, cos, sin)"),
    ("rotated-by-head", 4, "rotary_angles(D, start + T)", "rotary_angles(D, start + self.n_head)",
     Q, "q = rotate(q.transpose(1, 2), cos, sin).transpose(1, 2)", K,
     "k = rotate(k.transpose(1, 2), cos[: self.n_kv_head], sin[: self.n_kv_head])"
     ".transpose(1, 2)"),
    ("rotated-before-split", 4, Q, "q = rotate(self.query(x), *(t[start:] for t in rotary_angles("
     "C, start + T)))" + SPLIT, K, "k = self.key(x)\n        k = rotate(k, *(t[start:] for t in "
     "rotary_angles(k.shape[-1], start + T)))" + SPLIT.replace("n_head", "n_kv_head")),
    ("angles-of-n-embd", 4, "rotary_angles(D, start + T)", "rotary_angles(C, start + T)", FROM,
     "cos, sin = cos[start:, : D // 2], sin[start:, : D // 2]"),
    ("rotated-twice", 4, Q, Q + "\n        " + Q),
    ("different-positions", 4, "rotary_angles(D, start + T)", "rotary_angles(D, start + T + 1)",
     FROM, "", Q, "q = rotate(q, cos[start:-1], sin[start:-1])", K,
     "k = rotate(k, cos[start + 1:], sin[start + 1:])"),
    ("rotated-apart", 4, K, "k = rotate(k, cos, -sin)"),
    ("rotated-after", 4, Q, "pass", K, "pass", MERGE,
     "rotate(weights @ v, cos, sin).transpose(1, 2).reshape(B, T, C)"),
    ("heads-without-transpose", 4, ".view(B, T, self.n_head, D).transpose(1, 2)",
     ".view(B, self.n_head, T, D)", ".view(B, T, self.n_kv_head, D).transpose(1, 2)",
     ".view(B, self.n_kv_head, T, D)"),
    ("not-implemented", 4, Q, 'raise NotImplementedError("step 4: rotated heads")'),
    ("kv-width", 5, KEY, "self.key = nn.Linear(config.n_embd, config.n_embd, bias=False)"),
    ("repeated-in-turn", 5, KK, "k = k.repeat(1, group, 1, 1)", VV, "v = v.repeat(1, group, 1, 1)"),
    ("repeated-in-turn", 5, KK, "k = torch.cat([k] * group, dim=1)", VV,
     "v = torch.cat([v] * group, dim=1)"),
    ("values-not-repeated", 5, VV, ""),
    ("values-in-turn", 5, VV, "v = v.repeat(1, group, 1, 1)"),
    ("keys-in-turn", 5, KK, "k = k.repeat(1, group, 1, 1)"),
    ("one-head-for-all", 5, KK, "k = k[:, :1]", VV, "v = v[:, :1]"),
    ("values-of-one-head", 5, VV, "v = v[:, :1].expand(B, self.n_head, T, D)"),
    ("keys-of-one-head", 5, KK, "k = k[:, :1].expand(B, self.n_head, T, D)"),
    ("raises", 5, KK, "", VV, ""),
    ("raises", 5, "group = self.n_head // self.n_kv_head", "group = self.n_kv_head"),
    ("not-implemented", 5, KK, 'raise NotImplementedError("step 5: grouped queries")'),
    ("scale-of-n-embd", 6, "math.sqrt(D)", "math.sqrt(C)"),
    ("no-scale", 6, " / math.sqrt(D)", ""),
    ("another-scale", 6, "math.sqrt(D)", "D"),
    ("no-mask", 6, 'scores.masked_fill(future, float("-inf"))', "scores"),
    ("mask-reversed", 6, "triu(1)", "tril(-1)"),
    ("mask-of-zeros", 6, 'float("-inf")', "0"),
    ("mask-hides-itself", 6, "triu(1)", "triu(0)"),
    ("mask-after-softmax", 6, SOFTMAX, "F.softmax(scores, dim=-1).masked_fill(future, 0)"),
    ("softmax-over-queries", 6, '"-inf")), dim=-1)', '"-inf")), dim=1)'),
    ("keys-for-values", 6, "weights @ v", "weights @ k"),
    ("merged-without-transpose", 6, ".transpose(1, 2).reshape(B, T, C)", ".reshape(B, T, C)"),
    ("no-output-projection", 6, "return self.c_proj(y)", "return y"),
    ("residual-inside", 6, "return self.c_proj(y)", "return x + self.c_proj(y)"),
    ("stops-in-bfloat16", 6, "/ math.sqrt(D)", "/ torch.tensor([math.sqrt(D)])"),
    ("no-gradient", 6, "weights @ v", "weights.detach() @ v"),
    ("not-implemented", 6, "scores = ", 'raise NotImplementedError("step 6: attention")\n        '
     "scores = "),
    # The next two entries make two mistakes each. The check names the mistake of the earlier step.
    ("values-rotated", 4, K, K + "\n        v = rotate(v, cos, sin)", "math.sqrt(D)", "D"),
    ("interleaved", 3, HALVES, "a, b = x[..., ::2], x[..., 1::2]", CAT,
     "return torch.stack((first, second), dim=-1).flatten(-2)", "math.sqrt(D)", "D"),
]  # fmt: skip

LLAMA = """import torch
from torch import nn


class RMSNorm(nn.Module):
    def __init__(self, hidden_size, eps=1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.variance_epsilon = eps

    def forward(self, hidden_states):
        input_dtype = hidden_states.dtype
        hidden_states = hidden_states.to(torch.float32)
        variance = hidden_states.pow(2).mean(-1, keepdim=True)
        hidden_states = hidden_states * torch.rsqrt(variance + self.variance_epsilon)
        return self.weight * hidden_states.to(input_dtype)


def rotary_angles(head_dim, length):
    inv_freq = 1.0 / (10000.0 ** (torch.arange(0, head_dim, 2).float() / head_dim))
    t = torch.arange(length, dtype=torch.float32)
    freqs = torch.einsum("i,j->ij", t, inv_freq)
    emb = torch.cat((freqs, freqs), dim=-1)
    return emb.cos(), emb.sin()


def rotate_half(x):
    x1 = x[..., : x.shape[-1] // 2]
    x2 = x[..., x.shape[-1] // 2 :]
    return torch.cat((-x2, x1), dim=-1)


def rotate(x, cos, sin):
    return ((x * cos) + (rotate_half(x) * sin)).type_as(x)


def repeat_kv(hidden_states, n_rep):
    batch, num_key_value_heads, slen, head_dim = hidden_states.shape
    if n_rep == 1:
        return hidden_states
    hidden_states = hidden_states[:, :, None, :, :].expand(
        batch, num_key_value_heads, n_rep, slen, head_dim
    )
    return hidden_states.reshape(batch, num_key_value_heads * n_rep, slen, head_dim)


class GroupedQueryAttention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.num_key_value_heads = config.num_key_value_heads
        self.head_dim = config.hidden_size // self.num_heads
        self.q_proj = nn.Linear(config.hidden_size, self.num_heads * self.head_dim, bias=True)
        self.k_proj = nn.Linear(config.hidden_size, self.num_key_value_heads * self.head_dim)
        self.v_proj = nn.Linear(config.hidden_size, self.num_key_value_heads * self.head_dim)
        self.o_proj = nn.Linear(self.num_heads * self.head_dim, config.hidden_size, bias=False)

    def forward(self, hidden_states, position=0):
        bsz, q_len, _ = hidden_states.size()
        shape = (bsz, q_len, -1, self.head_dim)
        query_states = self.q_proj(hidden_states).view(shape).transpose(1, 2)
        key_states = self.k_proj(hidden_states).view(shape).transpose(1, 2)
        value_states = self.v_proj(hidden_states).view(shape).transpose(1, 2)
        cos, sin = rotary_angles(self.head_dim, position + q_len)
        cos, sin = cos[position:], sin[position:]
        query_states, key_states = rotate(query_states, cos, sin), rotate(key_states, cos, sin)
        n_rep = self.num_heads // self.num_key_value_heads
        key_states, value_states = repeat_kv(key_states, n_rep), repeat_kv(value_states, n_rep)
        out = torch.nn.functional.scaled_dot_product_attention(
            query_states, key_states, value_states, is_causal=True
        )
        return self.o_proj(out.transpose(1, 2).contiguous().view(bsz, q_len, -1))
"""
LOOPS = """import math
import torch
from torch import nn


class RMSNorm(nn.Module):
    def __init__(self, n_embd):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(n_embd))

    def forward(self, x):
        rms = x.norm(dim=-1, keepdim=True) / math.sqrt(x.size(-1))
        return self.gamma * x * (rms ** 2 + 1e-6) ** -0.5


def rotary_angles(head_dim, length):
    rows = [[t / 10000 ** (2 * i / head_dim) for i in range(head_dim // 2)] for t in range(length)]
    cos = torch.tensor([[math.cos(a) for a in row] for row in rows])
    sin = torch.tensor([[math.sin(a) for a in row] for row in rows])
    return cos, sin


def rotate(x, cos, sin):
    half = x.size(-1) // 2
    channels = []
    for i in range(half):
        channels.append(x[..., i] * cos[:, i] - x[..., i + half] * sin[:, i])
    for i in range(half):
        channels.append(x[..., i + half] * cos[:, i] + x[..., i] * sin[:, i])
    return torch.stack(channels, dim=-1).to(x.dtype)


class GroupedQueryAttention(nn.Module):
    def __init__(self, n_embd, n_head, n_kv_head):
        super().__init__()
        self.n_head, self.n_kv_head = n_head, n_kv_head
        self.wq = nn.Linear(n_embd, n_embd, bias=False)
        self.wkv = nn.Linear(n_embd, 2 * n_kv_head * (n_embd // n_head), bias=False)
        self.wo = nn.Linear(n_embd, n_embd, bias=False)

    def forward(self, x, start=0):
        T = x.size(1)
        D = x.size(2) // self.n_head
        keys, values = self.wkv(x).chunk(2, dim=-1)
        queries = self.wq(x)
        cos, sin = (table[start : start + T] for table in rotary_angles(D, start + T))
        heads = []
        for h in range(self.n_head):
            g = h * self.n_kv_head // self.n_head
            q = rotate(queries[:, :, h * D : (h + 1) * D], cos, sin)
            k = rotate(keys[:, :, g * D : (g + 1) * D], cos, sin)
            scores = q @ k.mT * D ** -0.5
            scores = scores + torch.full((T, T), -math.inf, dtype=x.dtype).triu(1)
            heads.append(scores.softmax(-1) @ values[:, :, g * D : (g + 1) * D])
        return self.wo(torch.cat(heads, dim=-1))
"""
EINSUM = """import torch
from torch import einsum, nn


class RMSNorm(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.norm = nn.RMSNorm(config.n_embd, eps=1e-6)

    def forward(self, x):
        return self.norm(x)


def rotary_angles(head_dim, length):
    i = torch.arange(head_dim // 2, dtype=torch.float64)
    t = torch.arange(length, dtype=torch.float64)
    angle = t[:, None] * torch.exp(-2 * i / head_dim * torch.log(torch.tensor(1e4)))[None, :]
    cos = torch.cat((angle.cos(), angle.cos()), dim=-1)
    return cos[None, None], torch.cat((-angle.sin(), angle.sin()), dim=-1)[None, None]


def rotate(x, cos, sin):
    swapped = x.roll(x.shape[-1] // 2, dims=-1)
    return (x * cos + swapped * sin).to(x.dtype)


class GroupedQueryAttention(nn.Module):
    def __init__(self, args):
        super().__init__()
        self.H, self.K = args.n_head, args.n_kv_head
        self.D = args.n_embd // self.H
        self.c_attn = nn.Linear(args.n_embd, (self.H + 2 * self.K) * self.D, bias=args.bias)
        self.c_proj = nn.Linear(args.n_embd, args.n_embd, bias=args.bias)

    def forward(self, x, start=0):
        B, T, C = x.shape
        q, k, v = self.c_attn(x).split([self.H * self.D, self.K * self.D, self.K * self.D], dim=-1)
        q = q.view(B, T, self.K, self.H // self.K, self.D).permute(0, 2, 3, 1, 4)
        k = k.view(B, T, self.K, self.D).permute(0, 2, 1, 3)
        v = v.view(B, T, self.K, self.D).permute(0, 2, 1, 3)
        cos, sin = rotary_angles(self.D, start + T)
        cos, sin = cos[..., start:, :], sin[..., start:, :]
        q = rotate(q, cos, sin) * self.D ** -0.5
        k = rotate(k, cos, sin)
        scores = einsum("bkgtd,bksd->bkgts", q, k)
        scores = scores.where(torch.ones(T, T).tril().bool(), float("-inf"))
        mixed = einsum("bkgts,bksd->btkgd", scores.softmax(-1), v)
        return self.c_proj(mixed.reshape(B, T, C))
"""
SDPA = BASE.replace(BASE[BASE.index("        group = ") : BASE.index("        y = ")], "").replace(
    MERGE,
    "F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)"
    ".transpose(1, 2).flatten(2)",
)
KEPT = BASE.replace("        self.c_proj =", "        cos, sin = rotary_angles(self.head_dim, 64)\n"
    "        self.register_buffer('cos', cos, persistent=False)\n"
    "        self.register_buffer('sin', sin, persistent=False)\n"
    "        self.c_proj =").replace(
    "        cos, sin = rotary_angles(D, start + T)\n", "").replace(
    FROM, "cos, sin = self.cos[start : start + T], self.sin[start : start + T]")  # fmt: skip

GROWING = BASE.replace("    positions = ", "    if head_dim in KEPT and len(KEPT[head_dim][0]) >= "
    "length:\n        return tuple(part[:length] for part in KEPT[head_dim])\n    positions = "
).replace(TABLES, "KEPT[head_dim] = angles.cos(), angles.sin()\n    return KEPT[head_dim]").replace(
    "def rotary_angles", "KEPT = {}\n\n\ndef rotary_angles")  # fmt: skip
"""This file keeps the longest tables of each head_dim, and uses them for every dtype."""

HEAD_NORM = """class HeadNorm(nn.Module):
    def __init__(self, dim, eps=1e-5):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight


class GroupedQueryAttention"""
PROJECTION = "        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=False)\n"
TURN_Q, TURN_K = "        q = rotate(q, cos, sin)\n", "        k = rotate(k, cos, sin)\n"
NORMS = "        q, k = self.q_norm(q), self.k_norm(k)\n"
WITH_NORMS = BASE.replace("class GroupedQueryAttention", HEAD_NORM).replace(
    PROJECTION,
    PROJECTION + "        self.q_norm = HeadNorm(self.head_dim)\n"
    "        self.k_norm = HeadNorm(self.head_dim)\n",
)
QWEN = WITH_NORMS.replace(TURN_Q, NORMS + TURN_Q)
WIDE_NORM = (
    WITH_NORMS.replace("q_norm = HeadNorm(self.head_dim)", "q_norm = HeadNorm(config.n_embd)")
    .replace("k_norm = HeadNorm(self.head_dim)",
             "k_norm = HeadNorm(self.n_kv_head * self.head_dim)")
    .replace("self.query(x)", "self.q_norm(self.query(x))")
    .replace("self.key(x)", "self.k_norm(self.key(x))")
)  # fmt: skip
QK_NORMS = {
    "qwen": QWEN,
    "layernorm": QWEN.replace("HeadNorm(self.head_dim)", "nn.LayerNorm(self.head_dim)"),
    "no gain, after": BASE.replace(
        TURN_K, TURN_K + "        q, k = F.rms_norm(q, (D,)), F.rms_norm(k, (D,))\n"
    ),
    "unit length": BASE.replace(
        TURN_K, TURN_K + "        q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)\n"
    ),
    "all heads together": WIDE_NORM,
    "queries alone": QWEN.replace(NORMS, "        q = self.q_norm(q)\n"),
}
"""Right files that normalise queries and keys; "queries alone" normalises only the queries."""
RIGHT = {
    "plain": BASE,
    "llama": LLAMA,
    "loops": LOOPS,
    "einsum": EINSUM,
    "sdpa": SDPA,
    "kept_tables": KEPT,
    "growing_tables": GROWING,
    **QK_NORMS,
    "reference": "from gptcli.course.exercises.modern import *\n",
}

# Mistakes in the styles of other programs. An entry holds the slug of the mistake, the step that is
# wrong, the name of a right file in RIGHT, and then pairs: a text of this right file, and the text
# that replaces it.
OTHER_STYLES: list[tuple[Any, ...]] = [
    ("queries-only", 4, "qwen", TURN_K, ""),
    ("start-ignored", 4, "qwen", "cos[start:], sin[start:]", "cos[:T], sin[:T]"),
    ("repeated-in-turn", 5, "qwen", "repeat_interleave(group, dim=1)", "repeat(1, group, 1, 1)"),
    ("no-scale", 6, "qwen", " / math.sqrt(D)", ""),
    ("never-rotated", 4, "all heads together", TURN_Q + TURN_K, ""),
    ("mean-subtracted", 1, "llama", "        variance =", "        hidden_states = hidden_states - "
     "hidden_states.mean(-1, keepdim=True)\n        variance ="),
    ("sum-for-mean", 1, "loops", " / math.sqrt(x.size(-1))", ""),
    ("another-eps", 1, "einsum", ", eps=1e-6", ""),
    ("exponent-not-doubled", 2, "loops", "(2 * i / head_dim)", "(i / head_dim)"),
    ("one-frequency", 2, "loops", "(2 * i / head_dim)", "(2 * i // head_dim)"),
    ("exponent-positive", 2, "einsum", "torch.exp(-2 * i", "torch.exp(2 * i"),
    ("interleaved-angles", 2, "llama", "torch.cat((freqs, freqs), dim=-1)",
     "torch.stack((freqs, freqs), dim=-1).flatten(1)"),
    ("sine-sign", 3, "llama", "torch.cat((-x2, x1), dim=-1)", "torch.cat((x2, -x1), dim=-1)"),
    ("interleaved-with-halves", 3, "llama", "x[..., : x.shape[-1] // 2]", "x[..., ::2]",
     "x[..., x.shape[-1] // 2 :]", "x[..., 1::2]", "torch.cat((-x2, x1), dim=-1)",
     "torch.stack((-x2, x1), dim=-1).flatten(-2)"),
    ("dtype-changed", 3, "llama", ".type_as(x)", ""),
    ("rotated-over-heads", 3, "llama", "    return ((x * cos)",
     "    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)\n    return ((x * cos)"),
    ("interleaved", 3, "loops", "x[..., i]", "x[..., 2 * i]", "x[..., i + half]",
     "x[..., 2 * i + 1]", "    for i in range(half):\n        channels.append(x[..., 2 * i + 1]",
     "        channels.append(x[..., 2 * i + 1]"),
    ("rotated-by-head", 4, "llama", "self.q_proj(hidden_states).view(shape).transpose(1, 2)",
     "self.q_proj(hidden_states).view(shape)", "rotate(query_states, cos, sin), ",
     "rotate(query_states, cos, sin).transpose(1, 2), "),
    ("start-ignored", 4, "einsum", "[..., start:, :]", "[..., :T, :]"),
    ("repeated-in-turn", 5, "loops", "h * self.n_kv_head // self.n_head", "h % self.n_kv_head"),
    ("repeated-in-turn", 5, "einsum",
     "self.K, self.H // self.K, self.D).permute(0, 2, 3, 1, 4)",
     "self.H // self.K, self.K, self.D).permute(0, 3, 2, 1, 4)", "->btkgd", "->btgkd"),
    ("kv-width", 5, "llama", "self.num_key_value_heads * self.head_dim",
     "self.num_heads * self.head_dim"),
    ("scale-of-n-embd", 6, "einsum", "self.D ** -0.5", "C ** -0.5"),
    ("mask-reversed", 6, "loops", ".triu(1)", ".tril(-1)"),
    ("no-output-projection", 6, "loops", "self.wo(torch.cat(heads, dim=-1))",
     "torch.cat(heads, dim=-1)"),
]  # fmt: skip


def in_other_style(entry: tuple[Any, ...]) -> str:
    """A right file, made wrong by the replacements in `entry`, a row of OTHER_STYLES."""
    return _replaced(RIGHT[entry[2]], entry[0], entry[3:])


def wrong_text(entry: tuple[Any, ...]) -> str:
    """The template BASE, made wrong by the replacements in `entry`, a row of WRONG."""
    return _replaced(BASE, entry[0], entry[2:])


def _replaced(text: str, slug: str, pairs: tuple[str, ...]) -> str:
    for old, new in zip(pairs[::2], pairs[1::2], strict=True):
        assert old in text, f"{slug}: {old!r}"
        text = text.replace(old, new)
    return text
