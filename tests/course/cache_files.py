"""Right and wrong files for the exercise `cache`, most of them made from one template."""

from __future__ import annotations

from typing import Any

HEAD = """import math

import torch
import torch.nn as nn
import torch.nn.functional as F


"""
CACHE = """class KeyValueCache:
    def __init__(self, block_size):
        self.block_size = block_size
        self.keys = None
        self.values = None

    def append(self, k, v):
        if self.keys is None:
            self.keys = k
            self.values = v
        else:
            self.keys = torch.cat([self.keys, k], dim=2)
            self.values = torch.cat([self.values, v], dim=2)
        return self.keys, self.values

    @property
    def length(self):
        if self.keys is None:
            return 0
        return self.keys.size(2)

    def fits(self, T):
        return self.length + T <= self.block_size

    def clear(self):
        self.keys = None
        self.values = None


"""
ATTENTION = """class CausalSelfAttention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.n_head = config.n_head
        self.query = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.key = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.value = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)

    def forward(self, x, cache=None):
        B, T, C = x.shape
        H, D = self.n_head, C // self.n_head
        q = self.query(x).view(B, T, H, D).transpose(1, 2)
        k = self.key(x).view(B, T, H, D).transpose(1, 2)
        v = self.value(x).view(B, T, H, D).transpose(1, 2)
        if cache is not None:
            if not cache.fits(T):
                raise ValueError("full")
            k, v = cache.append(k, v)
        S = k.shape[2]
        scores = q @ k.transpose(2, 3) / math.sqrt(D)
        mask = torch.ones(T, S, dtype=torch.bool, device=x.device).tril(diagonal=S - T)
        scores = scores.masked_fill(~mask, float("-inf"))
        weights = F.softmax(scores, dim=-1)
        y = (weights @ v).transpose(1, 2).contiguous().view(B, T, C)
        return self.c_proj(y)
"""
BASE = HEAD + CACHE + ATTENTION

STORE = CACHE[CACHE.index("        if self.keys is None:\n            self.keys = k") :
              CACHE.index("        return self.keys, self.values")]  # fmt: skip
RETURN = "        return self.keys, self.values\n"
CAT_K = "torch.cat([self.keys, k], dim=2)"
CAT_V = "torch.cat([self.values, v], dim=2)"
LENGTH = "        if self.keys is None:\n            return 0\n        return self.keys.size(2)\n"
FITS = "self.length + T <= self.block_size"
CLEAR = "        self.keys = None\n        self.values = None\n\n\nclass"
INIT = "        self.keys = None\n        self.values = None\n\n    def append"
CALL = "            k, v = cache.append(k, v)\n"
GUARD = '            if not cache.fits(T):\n                raise ValueError("full")\n'
MASK = "torch.ones(T, S, dtype=torch.bool, device=x.device).tril(diagonal=S - T)"
FILL = '        scores = scores.masked_fill(~mask, float("-inf"))\n'
MERGE = ".transpose(1, 2).contiguous().view(B, T, C)"
BUFFERS = """class KeyValueCache:
    def __init__(self, block_size):
        self.block_size = block_size
        self.n = 0
        self.k = self.v = None

    def append(self, k, v):
        if self.k is None:
            B, H, T, D = k.shape
            self.k = torch.zeros(B, H, self.block_size, D, dtype=k.dtype, device=k.device)
            self.v = torch.zeros_like(self.k)
        T = k.shape[2]
        self.k[:, :, self.n : self.n + T] = k
        self.v[:, :, self.n : self.n + T] = v
        self.n += T
        return self.k[:, :, : self.n], self.v[:, :, : self.n]

    @property
    def length(self):
        return self.n

    def fits(self, T):
        return T <= self.block_size - self.n

    def clear(self):
        self.n = 0


"""
LISTS = """class KeyValueCache:
    def __init__(self, block_size):
        self.limit = block_size
        self.past = []

    def append(self, k, v):
        self.past.append((k, v))
        return torch.cat([p[0] for p in self.past], -2), torch.cat([p[1] for p in self.past], -2)

    def __len__(self):
        return sum(p[0].shape[-2] for p in self.past)

    def fits(self, count):
        return not len(self) + count > self.limit

    def clear(self):
        self.past.clear()


"""
UPDATE = """class KVCache:
    def __init__(self, max_len=1024):
        self.max_len = max_len
        self.reset()

    def reset(self):
        self.k, self.v, self.pos = None, None, 0

    def update(self, k, v):
        if self.pos + k.size(-2) > self.max_len:
            raise ValueError("the window is full")
        self.k = k if self.k is None else torch.cat((self.k, k), dim=-2)
        self.v = v if self.v is None else torch.cat((self.v, v), dim=-2)
        self.pos += k.size(-2)
        return self.k, self.v


"""
TIME_FIRST = (
    CACHE.replace("dim=2", "dim=1").replace("size(2)", "size(1)")
    + ATTENTION.replace(CALL, "            k, v = k.transpose(1, 2), v.transpose(1, 2)\n"
                        "            k, v = cache.append(k, v)\n"
                        "            k, v = k.transpose(1, 2), v.transpose(1, 2)\n")
)  # fmt: skip
SDPA = (
    ATTENTION[: ATTENTION.index("        scores")]
    + """        start = S - T
        at = torch.arange(start, S, device=x.device)
        seen = at[:, None] >= torch.arange(S, device=x.device)[None, :]
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=seen)
        return self.c_proj(y.transpose(1, 2).reshape(B, T, C))
"""
)
FUSED = """class CausalSelfAttention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd, bias=config.bias)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.n_head = config.n_head
        self.n_embd = config.n_embd
        self.register_buffer("bias", torch.tril(torch.ones(config.block_size, config.block_size)))

    def forward(self, x, kv_cache=None):
        B, T, C = x.size()
        start = 0 if kv_cache is None else kv_cache.length
        q, k, v = self.c_attn(x).split(self.n_embd, dim=2)
        q, k, v = (t.view(B, T, self.n_head, -1).transpose(1, 2) for t in (q, k, v))
        if kv_cache is not None:
            assert kv_cache.fits(T), "no room"
            k, v = kv_cache.append(k, v)
        att = (q @ k.transpose(-2, -1)) * (1.0 / math.sqrt(k.size(-1)))
        att = att.masked_fill(self.bias[start : start + T, : start + T] == 0, float("-inf"))
        y = F.softmax(att, dim=-1) @ v
        return self.c_proj(y.transpose(1, 2).contiguous().view(B, T, C))
"""
LOOP = (
    ATTENTION[: ATTENTION.index("        scores")]
    + """        out = torch.zeros_like(q)
        for t in range(T):
            last = S - T + t + 1
            w = (q[:, :, t : t + 1] @ k[:, :, :last].transpose(2, 3) / D**0.5).softmax(-1)
            out[:, :, t : t + 1] = w @ v[:, :, :last]
        return self.c_proj(torch.cat(out.unbind(1), dim=-1))
"""
)
EINSUM = (
    ATTENTION[: ATTENTION.index("        scores")]
    + """        scores = torch.einsum("bhtd,bhsd->bhts", q, k) * D**-0.5
        if T > 1:
            bad = torch.full((T, S), float("-inf"), dtype=x.dtype, device=x.device)
            scores = scores + torch.triu(bad, diagonal=S - T + 1)
        y = torch.einsum("bhts,bhsd->bthd", scores.softmax(dim=-1), v)
        return self.c_proj(y.flatten(2))
"""
)

RIGHT = {
    "template": BASE,
    "buffers": HEAD + BUFFERS + ATTENTION,
    "lists": HEAD + LISTS + SDPA,
    "update": HEAD + UPDATE + EINSUM.replace(GUARD, "").replace("append", "update"),
    "time-first": HEAD + TIME_FIRST,
    "fused": HEAD + CACHE + FUSED,
    "loop": HEAD + CACHE + LOOP,
    "no-mask-for-one": BASE.replace(FILL, "        if T > 1:\n    " + FILL),
    "reference": "from gptcli.course.exercises.cache import KeyValueCache\n" + HEAD + ATTENTION,
}

# The mistakes. An entry holds the slug of the mistake, the step that is wrong, and then pairs: a
# text of the right file, and the text that replaces it.
WRONG: list[tuple[Any, ...]] = [
    ("shared-between-caches", 1, INIT, "    def append",
     "class KeyValueCache:\n", "class KeyValueCache:\n    keys = []\n    values = []\n\n",
     STORE, "        self.keys.append(k)\n        self.values.append(v)\n",
     RETURN, "        return torch.cat(self.keys, 2), torch.cat(self.values, 2)\n"),
    ("overwrites", 1, STORE, "        self.keys, self.values = k, v\n"),
    ("keeps-the-first", 1, CAT_K, "self.keys", CAT_V, "self.values"),
    ("wrong-dimension", 1, CAT_K, CAT_K.replace("2", "1"), CAT_V, CAT_V.replace("2", "1")),
    ("wrong-dimension", 1, CAT_K, CAT_K.replace(", dim=2", ""), CAT_V,
     CAT_V.replace(", dim=2", "")),
    ("wrong-dimension", 1, CAT_K, CAT_K.replace("2", "-1"), CAT_V, CAT_V.replace("2", "-1")),
    ("new-before-old", 1, "[self.keys, k]", "[k, self.keys]", "[self.values, v]",
     "[v, self.values]"),
    ("values-not-stored", 1, CAT_V, "v"),
    ("values-not-stored", 1, f"            self.values = {CAT_V}\n", ""),
    ("keys-not-stored", 1, CAT_K, "k"),
    ("keys-for-values", 1, CAT_V, CAT_K.replace("k]", "v]").replace("self.keys, v",
     "self.keys[:, :, : self.values.size(2)], k"), "self.values = v", "self.values = k"),
    ("tokens-lost", 1, "self.k[:, :, self.n : self.n + T] = k", "self.k[:, :, self.n] = k[:, :, 0]",
     "self.v[:, :, self.n : self.n + T] = v", "self.v[:, :, self.n] = v[:, :, 0]"),
    ("misplaced", 1, "self.k[:, :, self.n : self.n + T] = k",
     "self.k[:, :, max(self.n - 1, 0) : max(self.n - 1, 0) + T] = k"),
    ("other-dtype", 1, ", dtype=k.dtype", ""),
    ("other-dtype", 2, RETURN, "        return self.keys.float(), self.values.float()\n"),
    ("other-device", 1, ", device=k.device", ""),
    ("queries-stored", 1, "cache.append(k, v)", "cache.append(q, v)"),
    ("not-stored", 1, CALL, "            if cache.length:\n"
     "                k = torch.cat((cache.keys, k), 2)\n"
     "                v = torch.cat((cache.values, v), 2)\n"),
    ("returns-nothing", 2, RETURN, ""),
    ("returns-new-only", 2, RETURN, "        return k, v\n"),
    ("returns-old", 2, STORE, "        old = self.keys, self.values\n" + STORE, RETURN,
     "        return old\n"),
    ("swapped", 2, RETURN, "        return self.values, self.keys\n"),
    ("whole-buffer", 2, "return self.k[:, :, : self.n], self.v[:, :, : self.n]",
     "return self.k, self.v"),
    ("cache-not-read", 2, "k, v = cache.append(k, v)", "cache.append(k, v)"),
    ("half-read", 2, "k, v = cache.append(k, v)", "k, _ = cache.append(k, v)"),
    ("half-read", 2, "k, v = cache.append(k, v)", "_, v = cache.append(k, v)"),
    ("new-not-read", 2, CALL, "            old = cache.keys, cache.values\n"
     "            cache.append(k, v)\n            if old[0] is not None:\n"
     "                k, v = old\n", "diagonal=S - T", "diagonal=S"),
    ("swapped-in-forward", 2, "k, v = cache", "v, k = cache"),
    ("appended-twice", 2, CALL, "            cache.append(k, v)\n" + CALL),
    ("length-always-zero", 3, LENGTH, "        return 0\n"),
    ("length-of-another-dimension", 3, "size(2)", "size(0)"),
    ("length-of-another-dimension", 3, "size(2)", "size(-1)"),
    ("length-counts-calls", 3, "self.n + T", "self.n + T", "return self.n\n", "return self.calls\n",
     "self.n = 0\n        self.k", "self.n = self.calls = 0\n        self.k",
     "self.n += T", "self.n += T\n        self.calls += 1"),
    ("length-of-newest", 3, "return self.n\n", "return self.last\n",
     "self.n = 0\n        self.k", "self.n = self.last = 0\n        self.k",
     "self.n += T", "self.n += T\n        self.last = T"),
    ("length-off-by-one", 3, "self.keys.size(2)", "self.keys.size(2) - 1"),
    ("length-of-nothing", 3, LENGTH, "        return self.keys.size(2)\n"),
    ("fits-off-by-one", 4, FITS, FITS.replace("<=", "<")),
    ("fits-ignores-new", 4, FITS, "self.length < self.block_size"),
    ("fits-ignores-stored", 4, FITS, "T <= self.block_size"),
    ("fits-inverted", 4, FITS, FITS.replace("<=", ">")),
    ("never-full", 4, FITS, "True"),
    ("never-full", 4, GUARD, ""),
    ("drops-the-oldest", 4, "    def fits(self, T):\n        return " + FITS + "\n\n", "", RETURN,
     "        self.keys = self.keys[:, :, -self.block_size :]\n"
     "        self.values = self.values[:, :, -self.block_size :]\n" + RETURN, GUARD, ""),
    ("clear-incomplete", 4, CLEAR, "        self.keys = None\n\n\nclass", STORE,
     "        self.keys = k if self.keys is None else " + CAT_K + "\n"
     "        self.values = v if self.values is None else " + CAT_V + "\n"),
    ("clear-incomplete", 4, "        self.n = 0\n\n\nclass", "        self.k = None\n\n\nclass"),
    ("clear-incomplete", 4, CLEAR, "        pass\n\n\nclass"),
    ("no-mask", 5, FILL, "        if cache is None:\n    " + FILL),
    ("no-mask-after-stored", 5, FILL, "        if T == S:\n    " + FILL),
    ("mask-from-the-corner", 5, "diagonal=S - T", ""),
    ("mask-from-the-corner", 5, FILL, "", "weights = F.softmax(scores, dim=-1)",
     "weights = None", "(weights @ v)", "F.scaled_dot_product_attention(q, k, v, is_causal=True)"),
    ("mask-one-too-far", 5, "diagonal=S - T", "diagonal=S - T + 1"),
    ("mask-hides-itself", 5, "diagonal=S - T", "diagonal=S - T - 1"),
    ("mask-hides-stored", 5, MASK, MASK + "\n        mask[:, : S - T] = False"),
    ("mask-hides-new", 5, MASK, MASK + "\n        if S > T:\n            mask[:, S - T :] = "
     "torch.eye(T, dtype=torch.bool)"),
    ("another-diagonal", 5, "diagonal=S - T", "diagonal=T if S > T else 0"),
    ("mask-inverted", 5, "~mask", "mask"),
    ("mask-is-square", 5, MASK, MASK.replace("T, S", "T, T").replace("S - T", "0")),
    ("mask-is-square", 5, MASK, MASK.replace("T, S", "S, S").replace("S - T", "0")),
    ("mask-not-infinite", 5, 'float("-inf")', "0.0"),
    ("mask-after-softmax", 5, FILL, "", "dim=-1)", "dim=-1).masked_fill(~mask, 0.0)"),
    ("another-scale", 5, " / math.sqrt(D)", ""),
    ("another-scale", 5, "math.sqrt(D)", "math.sqrt(S)"),
    ("softmax-over-queries", 6, "dim=-1", "dim=-2"),
    ("no-softmax", 6, 'float("-inf")', "0.0", "F.softmax(scores, dim=-1)", "scores"),
    ("heads-mixed", 6, MERGE, ".reshape(B, T, C)"),
    ("not-projected", 6, "self.c_proj(y)", "y"),
    ("kept-in-module", 6, CALL, CALL + "            self.past = k, v\n"
     "        elif getattr(self, 'past', None) is not None:\n"
     "            k, v = (torch.cat((p, n), 2) for p, n in zip(self.past, (k, v)))\n"),
    ("dropout-in-evaluation", 6, "return self.c_proj(y)", "return F.dropout(self.c_proj(y), 0.1)"),
    ("dropout-in-evaluation", 6, "weights = F.softmax(scores, dim=-1)",
     "weights = F.dropout(F.softmax(scores, dim=-1), 0.1)"),
    ("returns-more", 6, "return self.c_proj(y)", "return self.c_proj(y), cache"),
    ("output-of-all-tokens", 6, "return self.c_proj(y)",
     "return self.c_proj(torch.cat((v.transpose(1, 2).reshape(B, S, C)[:, : S - T], y), 1))"),
]  # fmt: skip


def wrong_text(entry: tuple[Any, ...]) -> str:
    """The text of a wrong file: a right file with the replacements of `entry`, one of WRONG.

    The right file is BASE. If a replaced text is not in BASE, the right file is HEAD + BUFFERS +
    ATTENTION."""
    changes = list(zip(entry[2::2], entry[3::2], strict=True))
    text = BASE
    if any(old not in text for old, _ in changes):
        text = HEAD + BUFFERS + ATTENTION
    for old, new in changes:
        assert old in text, (entry[0], old)
        text = text.replace(old, new)
    return text
