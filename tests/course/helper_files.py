"""Wrong files whose fault is inside a function, a method, a module, a lambda or a loop.

WRONG is for attention, WRONG_OTHERS for other exercises. Each mistake is a replacement in one right
file. The report on the wrong file should quote a changed line, or a line named in ALSO.
"""

from __future__ import annotations

HEAD = """import math

import torch
import torch.nn as nn
import torch.nn.functional as F


"""
# In FUNCTIONS, the class calls functions outside the class (the helpers), which can be wrong.
FUNCTIONS = (
    HEAD
    + """def split_heads(t, n):
    b, s, c = t.shape
    t = t.reshape(b, s, n, c // n)
    return t.permute(0, 2, 1, 3)


def join_heads(t):
    b, n, s, d = t.shape
    t = t.permute(0, 2, 1, 3)
    return t.reshape(b, s, n * d)


def scale(t, d):
    return t / math.sqrt(d)


def similarity(q, k):
    raw = q @ k.transpose(-2, -1)
    return scale(raw, k.shape[-1])


def visible(s):
    return torch.tril(torch.ones(s, s)) > 0


def hide_future(t):
    keep = visible(t.shape[-1])
    return t.masked_fill(~keep, float("-inf"))


def hand_softmax(t):
    t = t - t.max(dim=-1, keepdim=True).values
    e = torch.exp(t)
    total = e.sum(dim=-1, keepdim=True)
    return e / total


def mix(w, v):
    return w @ v


class CausalSelfAttention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.n_head = config.n_head
        self.query = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.key = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.value = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)

    def forward(self, x):
        q = split_heads(self.query(x), self.n_head)
        k = split_heads(self.key(x), self.n_head)
        v = split_heads(self.value(x), self.n_head)
        scores = similarity(q, k)
        scores = hide_future(scores)
        weights = hand_softmax(scores)
        y = join_heads(mix(weights, v))
        return self.c_proj(y)
"""
)
# In METHODS, the helpers are methods of the class.
METHODS = (
    HEAD
    + """class CausalSelfAttention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.n_head = config.n_head
        self.head_dim = config.n_embd // config.n_head
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd, bias=config.bias)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)

    def _heads(self, t):
        B, T, _ = t.shape
        t = t.view(B, T, self.n_head, self.head_dim)
        return t.transpose(1, 2)

    def _merge(self, t):
        B, H, T, D = t.shape
        t = t.transpose(1, 2)
        return t.contiguous().view(B, T, H * D)

    def _scores(self, q, k):
        s = torch.matmul(q, k.transpose(-1, -2))
        s = s * self.head_dim ** -0.5
        return s

    def _mask(self, s):
        T = s.shape[-1]
        rows = torch.arange(T)[:, None]
        cols = torch.arange(T)[None, :]
        later = cols > rows
        return s.masked_fill(later, float("-inf"))

    def _weights(self, s):
        top = s.amax(-1, keepdim=True)
        p = (s - top).exp()
        p = p / p.sum(-1, keepdim=True)
        return p

    def _attend(self, q, k, v):
        s = self._scores(q, k)
        s = self._mask(s)
        p = self._weights(s)
        return torch.matmul(p, v)

    def forward(self, x):
        q, k, v = self.c_attn(x).chunk(3, dim=-1)
        q, k, v = self._heads(q), self._heads(k), self._heads(v)
        y = self._attend(q, k, v)
        y = self._merge(y)
        return self.c_proj(y)
"""
)
# In MODULES, the helpers are nn.Modules inside the attention module.
MODULES = (
    HEAD
    + """class Split(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.n = n

    def forward(self, t):
        B, T, C = t.shape
        t = t.view(B, T, self.n, C // self.n)
        return t.transpose(1, 2)


class Scores(nn.Module):
    def forward(self, q, k):
        s = q @ k.transpose(2, 3)
        return s / k.size(-1) ** 0.5


class Mask(nn.Module):
    def forward(self, s):
        T = s.size(-1)
        shut = torch.ones(T, T).triu(1).bool()
        s = s.masked_fill(shut, float("-inf"))
        return s


class Weights(nn.Module):
    def forward(self, s):
        e = torch.exp(s - s.max())
        n = e.sum(-1, keepdim=True)
        return e / n


class Merge(nn.Module):
    def forward(self, t):
        B, H, T, D = t.shape
        t = t.transpose(1, 2)
        return t.reshape(B, T, H * D)


class CausalSelfAttention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.query = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.key = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.value = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.split, self.score, self.mask = Split(config.n_head), Scores(), Mask()
        self.weigh, self.merge = Weights(), Merge()

    def forward(self, x):
        q = self.split(self.query(x))
        k = self.split(self.key(x))
        v = self.split(self.value(x))
        s = self.score(q, k)
        s = self.mask(s)
        w = self.weigh(s)
        y = self.merge(w @ v)
        return self.c_proj(y)
"""
)
# In LAMBDAS, the helpers are lambdas: outside the class, as attributes and in forward.
LAMBDAS = (
    HEAD
    + """normal = lambda e: e / e.sum(-1, keepdim=True)
later = lambda T: torch.ones(T, T).triu(1) == 1
root = lambda D: math.sqrt(D)


class CausalSelfAttention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.n_head = config.n_head
        self.query = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.key = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.value = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.soft = lambda s: normal(torch.exp(s))

    def forward(self, x):
        B, T, C = x.shape
        cut = lambda t: t.view(B, T, self.n_head, -1).transpose(1, 2)
        glue = lambda t: t.transpose(1, 2).reshape(B, T, C)
        score = lambda q, k: q @ k.transpose(-1, -2) / root(q.shape[-1])
        hide = lambda s: s.masked_fill(later(T), float("-inf"))
        q, k, v = cut(self.query(x)), cut(self.key(x)), cut(self.value(x))
        w = self.soft(hide(score(q, k)))
        return self.c_proj(glue(w @ v))
"""
)
# In LOOPS, there are no helpers: one loop goes over the heads, and one over the tokens.
LOOPS = (
    HEAD
    + """class CausalSelfAttention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.n_head = config.n_head
        self.D = config.n_embd // config.n_head
        self.query = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.key = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.value = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)

    def row(self, q, k, v, t):
        n = t + 1
        past = k[:, :n]
        s = (q[:, t : t + 1] * past).sum(-1)
        s = s / math.sqrt(self.D)
        e = torch.exp(s - s.max(-1, keepdim=True).values)
        w = e / e.sum(-1, keepdim=True)
        return (w[:, :, None] * v[:, :n]).sum(1)

    def forward(self, x):
        q, k, v = self.query(x), self.key(x), self.value(x)
        outs = []
        for h in range(self.n_head):
            at = slice(h * self.D, (h + 1) * self.D)
            rows = []
            for t in range(x.shape[1]):
                rows.append(self.row(q[..., at], k[..., at], v[..., at], t))
            outs.append(torch.stack(rows, dim=1))
        y = torch.cat(outs, dim=-1)
        return self.c_proj(y)
"""
)
RIGHT = {
    "functions": FUNCTIONS, "methods": METHODS, "modules": MODULES, "lambdas": LAMBDAS,
    "loops": LOOPS,
}  # fmt: skip

# The mistakes. An entry says in words what is wrong, and holds the number of the wrong step, the
# name of a right file in RIGHT, a text of this right file, and the text that replaces it.
WRONG: list[tuple[str, int, str, str, str]] = [
    ("no scale", 4, "functions", "return t / math.sqrt(d)", "return t * 1.0"),
    ("scale by d", 4, "functions", "return t / math.sqrt(d)", "return t / d"),
    ("scale multiplied", 4, "functions", "return t / math.sqrt(d)", "return t * math.sqrt(d)"),
    (
        "split without permute",
        2,
        "functions",
        "    t = t.reshape(b, s, n, c // n)\n    return t.permute(0, 2, 1, 3)",
        "    return t.reshape(b, n, s, c // n)",
    ),
    (
        "interleaved heads",
        2,
        "functions",
        "    t = t.reshape(b, s, n, c // n)\n    return t.permute(0, 2, 1, 3)",
        "    t = t.reshape(b, s, c // n, n)\n    return t.permute(0, 3, 1, 2)",
    ),
    (
        "mask strict",
        5,
        "functions",
        "torch.tril(torch.ones(s, s)) > 0",
        "torch.tril(torch.ones(s, s), -1) > 0",
    ),
    (
        "mask one ahead",
        5,
        "functions",
        "torch.tril(torch.ones(s, s)) > 0",
        "torch.tril(torch.ones(s, s), 1) > 0",
    ),
    ("mask reversed", 5, "functions", "masked_fill(~keep", "masked_fill(keep"),
    ("mask with zero", 5, "functions", 'float("-inf")', "0.0"),
    (
        "softmax sum over rows",
        6,
        "functions",
        "e.sum(dim=-1, keepdim=True)",
        "e.sum(dim=-2, keepdim=True)",
    ),
    ("softmax sum of everything", 6, "functions", "e.sum(dim=-1, keepdim=True)", "e.sum()"),
    ("softmax not divided", 6, "functions", "return e / total", "return e"),
    ("softmax squares", 6, "functions", "torch.exp(t)", "torch.exp(t) ** 2"),
    ("softmax plus one", 6, "functions", "return e / total", "return e / (1 + total)"),
    ("softmax base 2", 6, "functions", "e = torch.exp(t)", "e = torch.exp2(t)"),
    ("weights transposed", 7, "functions", "return w @ v", "return w.transpose(-1, -2) @ v"),
    (
        "merge without permute",
        8,
        "functions",
        "    t = t.permute(0, 2, 1, 3)\n    return t.reshape(b, s, n * d)",
        "    return t.reshape(b, s, n * d)",
    ),
    ("no scale", 4, "methods", "        s = s * self.head_dim ** -0.5\n", ""),
    ("scale wrong power", 4, "methods", "self.head_dim ** -0.5", "self.head_dim ** -1.0"),
    (
        "scale of n_embd",
        4,
        "methods",
        "self.head_dim ** -0.5",
        "(self.n_head * self.head_dim) ** -0.5",
    ),
    (
        "view without transpose",
        2,
        "methods",
        "        t = t.view(B, T, self.n_head, self.head_dim)\n        return t.transpose(1, 2)",
        "        return t.view(B, self.n_head, T, self.head_dim)",
    ),
    ("mask hides itself", 5, "methods", "cols > rows", "cols >= rows"),
    ("mask hides past", 5, "methods", "cols > rows", "cols < rows"),
    ("mask one late", 5, "methods", "cols > rows", "cols > rows + 1"),
    ("sum over queries", 6, "methods", "p.sum(-1, keepdim=True)", "p.sum(-2, keepdim=True)"),
    ("mean for sum", 6, "methods", "p.sum(-1, keepdim=True)", "p.mean(-1, keepdim=True)"),
    ("root of exp", 6, "methods", "(s - top).exp()", "(s - top).exp().sqrt()"),
    ("weights squared", 7, "methods", "torch.matmul(p, v)", "torch.matmul(p * p, v)"),
    ("weights times keys", 7, "methods", "torch.matmul(p, v)", "torch.matmul(p, k)"),
    (
        "merge without transpose",
        8,
        "methods",
        "        t = t.transpose(1, 2)\n        return t.contiguous()",
        "        return t.contiguous()",
    ),
    ("no scale", 4, "modules", "return s / k.size(-1) ** 0.5", "return s"),
    ("scale by tokens", 4, "modules", "k.size(-1) ** 0.5", "k.size(-2) ** 0.5"),
    (
        "split wrong",
        2,
        "modules",
        "        t = t.view(B, T, self.n, C // self.n)\n        return t.transpose(1, 2)",
        "        return t.view(B, self.n, T, C // self.n)",
    ),
    ("mask diagonal 0", 5, "modules", ".triu(1).bool()", ".triu(0).bool()"),
    ("mask diagonal 2", 5, "modules", ".triu(1).bool()", ".triu(2).bool()"),
    ("mask small number", 5, "modules", 'float("-inf")', "-1.0"),
    ("sum over queries", 6, "modules", "e.sum(-1, keepdim=True)", "e.sum(-2, keepdim=True)"),
    ("sum of everything", 6, "modules", "e.sum(-1, keepdim=True)", "e.sum()"),
    ("not divided", 6, "modules", "return e / n", "return e"),
    (
        "merge wrong",
        8,
        "modules",
        "        t = t.transpose(1, 2)\n        return t.reshape",
        "        return t.reshape",
    ),
    ("sum over queries", 6, "lambdas", "e.sum(-1, keepdim=True)", "e.sum(-2, keepdim=True)"),
    ("not normal", 6, "lambdas", "normal(torch.exp(s))", "torch.exp(s)"),
    ("mask diagonal", 5, "lambdas", ".triu(1) == 1", ".triu(2) == 1"),
    ("mask reversed", 5, "lambdas", ".triu(1) == 1", ".triu(1) == 0"),
    ("scale by d", 4, "lambdas", "math.sqrt(D)", "D"),
    ("merge wrong", 8, "lambdas", "t.transpose(1, 2).reshape(B, T, C)", "t.reshape(B, T, C)"),
    (
        "split wrong",
        2,
        "lambdas",
        "t.view(B, T, self.n_head, -1).transpose(1, 2)",
        "t.view(B, self.n_head, T, -1)",
    ),
    ("no scale", 4, "loops", "        s = s / math.sqrt(self.D)\n", ""),
    ("scale by n_head", 4, "loops", "math.sqrt(self.D)", "math.sqrt(self.n_head)"),
    ("softmax not divided", 6, "loops", "w = e / e.sum(-1, keepdim=True)", "w = e"),
    ("softmax of all texts", 6, "loops", "e.sum(-1, keepdim=True)", "e.sum()"),
    (
        "heads mixed",
        2,
        "loops",
        "slice(h * self.D, (h + 1) * self.D)",
        "slice(h, None, self.n_head)",
    ),
    ("heads in reverse", 8, "loops", "torch.cat(outs, dim=-1)", "torch.cat(outs[::-1], dim=-1)"),
]


ALSO = {
    ("functions", "no scale"): "raw = q @ k",
    ("functions", "softmax not divided"): "e = torch.exp(t)",
    ("modules", "no scale"): "s = q @ k",
    ("modules", "not divided"): "e = torch.exp(s - s.max())",
    ("lambdas", "mask reversed"): "hide = lambda",
    ("lambdas", "scale by d"): "score = lambda",
    ("loops", "softmax not divided"): "e = torch.exp(s",
    ("loops", "heads mixed"): "rows.append(self.row(q[..., at]",
    ("mlp", "no root"): "self.act(self.c_fc(x))",
    ("mlp", "not called"): "return self.c_proj(t)",
    ("sampling", "softmax without exp"): "return e / e.sum()",
    ("sampling", "one too few"): "kth_largest(logits, k)",
    ("sampling", "one too many"): "ordered = sorted(",
    ("sampling", "crossing cut"): "before_each(probs)",
    ("sampling", "shortest end"): "stop.startswith(text[-n:])",
    ("modern", "neighbours"): "quarter(x) * sin",
    ("modern", "sign"): "quarter(x) * sin",
    ("modern", "no minus"): "quarter(x) * sin",
}
"""(name of the right file or exercise, what is wrong) -> a text in an unchanged line. The report
may also quote this line: it is part of the wrong helper, or it calls the wrong helper."""


def wrong_text(entry: tuple[str, int, str, str, str]) -> str:
    """The text of a wrong file: a right file after the replacement in `entry` of WRONG."""
    text = RIGHT[entry[2]]
    assert text.count(entry[3]) >= 1, entry
    return text.replace(entry[3], entry[4])


def faulty_lines(entry: tuple[str, int, str, str, str]) -> set[int]:
    """The numbers of the lines that `entry` changed, counted in the wrong file.

    If `entry` only deleted a text, these are the two lines around the deleted text."""
    text = RIGHT[entry[2]]
    at = text.index(entry[3])
    first = text[:at].count("\n") + 1
    count = max(entry[4].rstrip("\n").count("\n") + 1, 1)
    return set(range(first - (entry[4] == ""), first + count))


# ---- the other exercises: (exercise, what is wrong, step, old text, new text) --------------------

LAYERNORM = """import torch
from torch import nn


def average(t):
    return t.mean(dim=-1, keepdim=True)


def spread(t, m):
    away = t - m
    return average(away * away)


def standard(t, m, s, eps):
    return (t - m) / torch.sqrt(s + eps)


class LayerNorm(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(config.n_embd))
        self.bias = nn.Parameter(torch.zeros(config.n_embd)) if config.bias else None

    def stretch(self, t):
        t = t * self.weight
        return t if self.bias is None else t + self.bias

    def forward(self, x):
        m = average(x)
        s = spread(x, m)
        return self.stretch(standard(x, m, s, 1e-5))
"""
MLP = """import math

import torch
from torch import nn

bend = lambda t: 0.5 * t * (1 + torch.erf(t / math.sqrt(2)))


class Narrow(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.n = n

    def forward(self, t):
        return bend(t)


class MLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd, bias=config.bias)
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd, bias=config.bias)
        self.act = Narrow(config.n_embd)
        self.dropout = nn.Dropout(config.dropout)

    def back(self, t):
        return self.c_proj(t)

    def forward(self, x):
        y = self.back(self.act(self.c_fc(x)))
        return self.dropout(y)
"""
SAMPLING = """import torch


def hand_softmax(t):
    t = t - t.max()
    e = torch.exp(t)
    return e / e.sum()


def cut(t, where):
    return t.masked_fill(where, float("-inf"))


def kth_largest(t, k):
    ordered = sorted(t.tolist(), reverse=True)
    return ordered[min(k, len(ordered)) - 1]


def before_each(probabilities):
    return torch.cumsum(probabilities, 0) - probabilities


def weaker(value, penalty):
    return value / penalty if value > 0 else value * penalty


def first_over(total, u):
    for i, value in enumerate(total):
        if value > u:
            return i
    return len(total) - 1


def temperature(logits, t):
    return logits / t


def top_k(logits, k):
    return cut(logits, logits < kth_largest(logits, k))


def top_p(logits, p):
    if p >= 1:
        return logits
    probs, order = torch.sort(hand_softmax(logits), descending=True)
    gone = before_each(probs) >= p
    gone[0] = False
    mask = torch.zeros_like(gone)
    mask[order] = gone
    return cut(logits, mask)


def min_p(logits, p):
    probs = hand_softmax(logits)
    return cut(logits, probs < p * probs.max())


def repetition_penalty(logits, seen_ids, penalty):
    out = logits.clone()
    for i in set(seen_ids):
        out[i] = weaker(logits[i], penalty)
    return out


def draw(logits, u):
    total = torch.cumsum(hand_softmax(logits), 0)
    return first_over(total.tolist(), u)


def next_token(logits, seen_ids, u, t, k, p, m, penalty):
    logits = repetition_penalty(logits, seen_ids, penalty)
    if t == 0:
        return int(torch.argmax(logits))
    logits = temperature(logits, t)
    logits = min_p(top_p(top_k(logits, k), p), m)
    return draw(logits, u)


def longest_end(text, stops):
    for n in range(len(text), 0, -1):
        if any(stop.startswith(text[-n:]) for stop in stops):
            return n
    return 0


def cut_at_stop(text, stops):
    found = [text.find(stop) for stop in stops if stop in text]
    if found:
        return text[: min(found)], "", True
    n = longest_end(text, stops)
    return text[: len(text) - n], text[len(text) - n :], False
"""
MODERN = """import torch
import torch.nn.functional as F
from torch import nn


def size_of(x, eps):
    return torch.sqrt(torch.mean(x * x, dim=-1, keepdim=True) + eps)


class RMSNorm(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(config.n_embd))

    def forward(self, x):
        return x / size_of(x, 1e-6) * self.weight


def speeds(d):
    return 10000.0 ** (-torch.arange(0, d, 2) / d)


def rotary_angles(head_dim, length):
    turns = torch.outer(torch.arange(length).float(), speeds(head_dim))
    return turns.cos(), turns.sin()


def halves(x):
    d = x.shape[-1] // 2
    return x[..., :d], x[..., d:]


def quarter(x):
    a, b = halves(x)
    return torch.cat((-b, a), dim=-1)


def rotate(x, cos, sin):
    cos = torch.cat((cos, cos), dim=-1).to(x)
    sin = torch.cat((sin, sin), dim=-1).to(x)
    return x * cos + quarter(x) * sin


def share(t, n):
    b, k, s, d = t.shape
    return t[:, :, None].expand(b, k, n, s, d).reshape(b, k * n, s, d)


def attend(q, k, v):
    scores = q @ k.transpose(-1, -2)
    scores = scores / q.shape[-1] ** 0.5
    later = torch.ones(scores.shape[-2:]).triu(1).bool()
    return F.softmax(scores.masked_fill(later, float("-inf")), dim=-1) @ v


class GroupedQueryAttention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.H, self.K = config.n_head, config.n_kv_head
        self.D = config.n_embd // config.n_head
        self.query = nn.Linear(config.n_embd, self.H * self.D, bias=False)
        self.key = nn.Linear(config.n_embd, self.K * self.D, bias=False)
        self.value = nn.Linear(config.n_embd, self.K * self.D, bias=False)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=False)

    def heads(self, t, n):
        return t.view(t.shape[0], t.shape[1], n, self.D).transpose(1, 2)

    def turn(self, t, start):
        cos, sin = rotary_angles(self.D, start + t.shape[2])
        return rotate(t, cos[start:], sin[start:])

    def merge(self, t):
        return t.transpose(1, 2).flatten(2)

    def forward(self, x, start=0):
        q = self.turn(self.heads(self.query(x), self.H), start)
        k = self.turn(self.heads(self.key(x), self.K), start)
        v = self.heads(self.value(x), self.K)
        n = self.H // self.K
        return self.c_proj(self.merge(attend(q, share(k, n), share(v, n))))
"""
OTHERS = {"layernorm": LAYERNORM, "mlp": MLP, "sampling": SAMPLING, "modern": MODERN}
WRONG_OTHERS: list[tuple[str, str, int, str, str]] = [
    (
        "layernorm",
        "mean over tokens",
        1,
        "t.mean(dim=-1, keepdim=True)",
        "t.mean(dim=1, keepdim=True)",
    ),
    ("layernorm", "not squared", 2, "average(away * away)", "average(away.abs())"),
    (
        "layernorm",
        "unbiased",
        2,
        "    away = t - m\n    return average(away * away)",
        "    return t.var(dim=-1, keepdim=True)",
    ),
    ("layernorm", "no root", 3, "torch.sqrt(s + eps)", "(s + eps)"),
    ("layernorm", "eps outside", 3, "torch.sqrt(s + eps)", "(torch.sqrt(s) + eps)"),
    ("layernorm", "no gain", 4, "        t = t * self.weight\n", ""),
    (
        "layernorm",
        "bias first",
        4,
        "        t = t * self.weight\n        return t if self.bias is None else t + self.bias",
        "        t = t if self.bias is None else t + self.bias\n        return t * self.weight",
    ),
    ("mlp", "without half", 2, "0.5 * t *", "t *"),
    ("mlp", "relu", 2, "0.5 * t * (1 + torch.erf(t / math.sqrt(2)))", "torch.relu(t)"),
    ("mlp", "no root", 2, "math.sqrt(2)", "2"),
    ("mlp", "not called", 2, "return bend(t)", "bend(t)\n        return t"),
    ("mlp", "output doubled", 4, "return self.c_proj(t)", "return self.c_proj(t) * 2"),
    ("sampling", "softmax without exp", 3, "e = torch.exp(t)", "e = t"),
    ("sampling", "exp of twice", 3, "e = torch.exp(t)", "e = torch.exp(2 * t)"),
    ("sampling", "cut with 0", 2, 'float("-inf")', "0.0"),
    ("sampling", "one too few", 2, "len(ordered)) - 1", "len(ordered)) - 2"),
    (
        "sampling",
        "one too many",
        2,
        "ordered[min(k, len(ordered)) - 1]",
        "ordered[min(k, len(ordered) - 1)]",
    ),
    ("sampling", "smallest", 2, "reverse=True", "reverse=False"),
    (
        "sampling",
        "crossing cut",
        3,
        "torch.cumsum(probabilities, 0) - probabilities",
        "torch.cumsum(probabilities, 0)",
    ),
    (
        "sampling",
        "negative divided",
        5,
        "value / penalty if value > 0 else value * penalty",
        "value / penalty",
    ),
    (
        "sampling",
        "signs swapped",
        5,
        "value / penalty if value > 0 else value * penalty",
        "value * penalty if value > 0 else value / penalty",
    ),
    (
        "sampling",
        "one too far",
        6,
        "return i\n    return len(total) - 1",
        "return i + 1\n    return len(total) - 1",
    ),
    ("sampling", "shortest end", 8, "range(len(text), 0, -1)", "range(1, len(text) + 1)"),
    ("sampling", "whole text only", 8, "stop.startswith(text[-n:])", "stop == text[-n:]"),
    (
        "modern",
        "mean not squared",
        1,
        "torch.mean(x * x, dim=-1, keepdim=True)",
        "torch.mean(x, dim=-1, keepdim=True) ** 2",
    ),
    ("modern", "sum", 1, "torch.mean(x * x", "torch.sum(x * x"),
    ("modern", "theta", 2, "10000.0 **", "1000.0 **"),
    ("modern", "plus", 2, "(-torch.arange", "(torch.arange"),
    (
        "modern",
        "neighbours",
        3,
        "    d = x.shape[-1] // 2\n    return x[..., :d], x[..., d:]",
        "    return x[..., 0::2], x[..., 1::2]",
    ),
    ("modern", "sign", 3, "(-b, a)", "(b, -a)"),
    ("modern", "no minus", 3, "(-b, a)", "(b, a)"),
    (
        "modern",
        "start ignored",
        4,
        "cos[start:], sin[start:]",
        "cos[: t.shape[2]], sin[: t.shape[2]]",
    ),
    (
        "modern",
        "view only",
        4,
        "t.view(t.shape[0], t.shape[1], n, self.D).transpose(1, 2)",
        "t.view(t.shape[0], n, t.shape[1], self.D)",
    ),
    (
        "modern",
        "in turn",
        5,
        "    b, k, s, d = t.shape\n"
        "    return t[:, :, None].expand(b, k, n, s, d).reshape(b, k * n, s, d)",
        "    return t.repeat(1, n, 1, 1)",
    ),
    ("modern", "no scale", 6, "    scores = scores / q.shape[-1] ** 0.5\n", ""),
    ("modern", "softmax over queries", 6, "dim=-1) @ v", "dim=-2) @ v"),
    ("modern", "mask one late", 6, ".triu(1)", ".triu(2)"),
    (
        "modern",
        "no transpose",
        6,
        "t.transpose(1, 2).flatten(2)",
        "t.reshape(t.shape[0], t.shape[2], -1)",
    ),
]


def wrong_other(entry: tuple[str, str, int, str, str]) -> str:
    """The text of a wrong file: a right file of OTHERS after the replacement in `entry`."""
    text = OTHERS[entry[0]]
    assert entry[3] in text, entry
    return text.replace(entry[3], entry[4])


def faulty_other(entry: tuple[str, str, int, str, str]) -> set[int]:
    """The numbers of the lines that `entry` changed, counted in the wrong file.

    If `entry` only deleted a text, these are the two lines around the deleted text."""
    text = OTHERS[entry[0]]
    first = text[: text.index(entry[3])].count("\n") + 1
    count = max(entry[4].rstrip("\n").count("\n") + 1, 1)
    return set(range(first - (entry[4] == ""), first + count))
