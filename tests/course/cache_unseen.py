"""Right and wrong files for the exercise `cache`, in styles unlike those of cache_files.py."""

from __future__ import annotations

from gptcli.course.catalogue import exercise_named
from gptcli.course.solutions import solution

HEAD = """import torch
import torch.nn as nn
from torch.nn import functional as F


"""
DICT = """class KeyValueCache:
    \"\"\"Keeps past keys / values in a dict.\"\"\"

    def __init__(self, block_size):
        self.max = block_size
        self.store = {}

    def append(self, new_k, new_v):
        if "k" in self.store:
            new_k = torch.cat((self.store["k"], new_k), 2)
            new_v = torch.cat((self.store["v"], new_v), 2)
        self.store = dict(k=new_k, v=new_v)
        return self.store["k"], self.store["v"]

    @property
    def length(self):
        if not self.store:
            return 0
        return self.store["k"].shape[-2]

    def fits(self, T):
        room = self.max - self.length
        return room >= T

    def clear(self):
        self.store = {}


"""
TENSOR = """class KeyValueCache:
    def __init__(self, block_size):
        self.block_size = block_size
        self.kv = None
        self.pos = 0

    def append(self, k, v):
        kv = torch.stack((k, v))                       # (2, B, H, T, D)
        if self.kv is None:
            self.kv = kv
        else:
            self.kv = torch.cat((self.kv, kv), dim=3)
        self.pos = self.pos + k.shape[2]
        return self.kv[0], self.kv[1]

    @property
    def length(self):
        return self.pos

    def fits(self, T):
        return self.pos + T <= self.block_size

    def clear(self):
        self.kv = None
        self.pos = 0


"""
TOKENS = """class KeyValueCache:
    def __init__(self, block_size):
        self.size = block_size
        self.k_list, self.v_list = [], []

    def append(self, k, v):
        for t in range(k.shape[2]):
            self.k_list.append(k[:, :, t])
            self.v_list.append(v[:, :, t])
        keys = torch.stack(self.k_list, dim=2)
        values = torch.stack(self.v_list, dim=2)
        return keys, values

    @property
    def length(self):
        return len(self.k_list)

    def fits(self, T):
        return len(self.k_list) + T <= self.size

    def clear(self):
        self.k_list.clear()
        self.v_list.clear()


"""
INIT = """class CausalSelfAttention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.nh = config.n_head
        self.hd = config.n_embd // config.n_head
        self.query = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.key = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.value = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)

    def forward(self, x, cache=None):
        b, t, c = x.size()
        q = self.query(x).reshape(b, t, self.nh, self.hd).permute(0, 2, 1, 3)
        k = self.key(x).reshape(b, t, self.nh, self.hd).permute(0, 2, 1, 3)
        v = self.value(x).reshape(b, t, self.nh, self.hd).permute(0, 2, 1, 3)
"""
PLAIN = (
    INIT
    + """        past = 0
        if cache is not None:
            past = cache.length
            if not cache.fits(t):
                raise ValueError("window full")
            k, v = cache.append(k, v)
        total = past + t
        att = torch.matmul(q, k.transpose(-1, -2)) * self.hd ** -0.5
        rows = torch.arange(past, total).view(-1, 1)
        cols = torch.arange(total).view(1, -1)
        att = torch.where(cols <= rows, att, torch.full_like(att, float("-inf")))
        p = att.softmax(-1)
        out = torch.matmul(p, v)
        out = out.permute(0, 2, 1, 3).reshape(b, t, c)
        return self.c_proj(out)
"""
)
ROWS = (
    INIT
    + """        if cache is not None:
            if not cache.fits(t):
                raise ValueError("window full")
            k, v = cache.append(k, v)
        s = k.size(2)
        scores = q @ k.mT / self.hd**0.5
        for i in range(t):
            scores[:, :, i, s - t + i + 1 :] = float("-inf")
        w = torch.softmax(scores, dim=3)
        heads = [w[:, h] @ v[:, h] for h in range(self.nh)]
        return self.c_proj(torch.cat(heads, dim=-1))
"""
)
SDPA = (
    INIT
    + """        if cache is not None:
            if not cache.fits(t):
                raise ValueError("window full")
            k, v = cache.append(k, v)
        s = k.size(2)
        if s == t:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        elif t == 1:
            y = F.scaled_dot_product_attention(q, k, v)
        else:
            m = torch.ones(t, s, dtype=torch.bool, device=x.device).tril(s - t)
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=m)
        return self.c_proj(y.transpose(1, 2).reshape(b, t, c))
"""
)

RIGHT = {
    "dict": HEAD + DICT + PLAIN,
    "one tensor": HEAD + TENSOR + ROWS,
    "token by token": HEAD + TOKENS + SDPA,
    "skeleton": solution(exercise_named("cache")),
}

# The mistakes. Each entry changes a right file into a wrong one. It holds, in this order: what is
# wrong in words, the number of the wrong step, the name of the right file in RIGHT, and pairs of
# texts. The first text of a pair is in the right file, and the second text replaces it.
WRONG: list[tuple[str, ...]] = [
    ("cat without dim in a dict", "1", "dict", "new_k), 2)", "new_k))", "new_v), 2)", "new_v))"),
    ("values overwritten, cat forgotten", "1", "dict", 'torch.cat((self.store["v"], new_v), 2)',
     "new_v"),
    ("cat along the wrong dimension", "1", "one tensor", "dim=3", "dim=4"),
    ("new first", "1", "one tensor", "(self.kv, kv)", "(kv, self.kv)"),
    ("only the last new token", "1", "token by token", "for t in range(k.shape[2]):",
     "for t in [k.shape[2] - 1]:"),
    ("tokens backwards", "1", "token by token", "range(k.shape[2])",
     "reversed(range(k.shape[2]))"),
    ("list shared by all", "1", "token by token", "        self.k_list, self.v_list = [], []\n", "",
     "class KeyValueCache:\n", "class KeyValueCache:\n    k_list = []\n    v_list = []\n\n"),
    ("half precision", "1", "one tensor", "torch.stack((k, v)) ", "torch.stack((k, v)).half() "),
    ("values stored in both", "1", "token by token", "append(k[:, :, t])", "append(v[:, :, t])"),
    ("returns only the newest token", "2", "dict", 'return self.store["k"], self.store["v"]',
     "return self.store['k'][:, :, -1:], self.store['v'][:, :, -1:]"),
    ("returns values before keys", "2", "one tensor", "return self.kv[0], self.kv[1]",
     "return self.kv[1], self.kv[0]"),
    ("append returns nothing", "2", "token by token", "        return keys, values\n", ""),
    ("result of append thrown away", "2", "dict", "k, v = cache.append(k, v)",
     "cache.append(k, v)\n        total = t\n        past = 0", "total = past + t", ""),
    ("result under other names", "2", "one tensor", "k, v = cache.append(k, v)",
     "keys, values = cache.append(k, v)"),
    ("length of the batch", "3", "dict", "shape[-2]", "shape[0]"),
    ("length of the dict", "3", "dict", 'self.store["k"].shape[-2]', "len(self.store)"),
    ("position grows by one", "3", "one tensor", "self.pos + k.shape[2]", "self.pos + 1"),
    ("position is that of the last token", "3", "token by token",
     "return len(self.k_list)\n\n    def f", "return len(self.k_list) - 1\n\n    def f"),
    ("position set, not added", "3", "one tensor", "self.pos + k.shape[2]", "k.shape[2]"),
    ("no room for the last", "4", "dict", "room >= T", "room > T"),
    ("room for one is enough", "4", "dict", "room >= T", "room > 0"),
    ("clear keeps the position", "4", "one tensor",
     "        self.kv = None\n        self.pos = 0\n\n\nc",
     "        self.kv = None\n\n\nc"),
    ("clear forgets the values", "4", "token by token", "        self.v_list.clear()\n", ""),
    ("rows from 0", "5", "dict", "torch.arange(past, total)", "torch.arange(t)"),
    ("length after append", "5", "dict", "            past = cache.length\n", "",
     "            k, v = cache.append(k, v)\n",
     "            k, v = cache.append(k, v)\n            past = cache.length\n",
     "total = past + t", "total = k.size(2)", "torch.arange(past, total)",
     "torch.arange(past, past + t)"),
    ("strictly earlier", "5", "dict", "cols <= rows", "cols < rows"),
    ("loop mask without the past", "5", "one tensor", "s - t + i + 1 :", "i + 1 :"),
    ("loop mask one too late", "5", "one tensor", "s - t + i + 1 :", "s - t + i + 2 :"),
    ("mask only without a cache", "5", "one tensor", "        for i in range(t):",
     "        for i in range(t if cache is None else 0):"),
    ("is_causal for everything", "5", "token by token", "attn_mask=m", "is_causal=True"),
    ("no mask for pieces", "5", "token by token", "attn_mask=m)", "attn_mask=None)"),
    ("mask of t x t", "5", "token by token", "torch.ones(t, s, dtype=torch.bool, device=x.device)"
     ".tril(s - t)", "torch.ones(t, t, dtype=torch.bool, device=x.device).tril()"),
    ("mask means hidden", "5", "token by token", ".tril(s - t)", ".triu(s - t + 1)"),
    ("softmax over queries", "6", "one tensor", "dim=3", "dim=3 - 1", "(self.kv, kv), dim=3 - 1",
     "(self.kv, kv), dim=3"),
    ("heads not put back", "6", "dict", "out.permute(0, 2, 1, 3).reshape", "out.reshape"),
    ("no projection", "6", "one tensor", "self.c_proj(torch.cat(heads, dim=-1))",
     "torch.cat(heads, dim=-1)"),
    ("returns the cache, too", "6", "dict", "return self.c_proj(out)",
     "return self.c_proj(out), cache"),
    ("cache kept in the module", "6", "one tensor", "        if cache is not None:\n            if",
     "        if cache is None:\n            cache = getattr(self, 'last', None)\n"
     "        self.last = cache\n        if cache is not None:\n            if"),
    ("keeps the first, quietly", "1", "skeleton", "self.keys, self.values = k, v",
     "if self.keys is None:\n            self.keys, self.values = k, v"),
    ("cuts after four tokens", "1", "skeleton", "self.keys, self.values = k, v",
     "self.keys, self.values = k[:, :, :4], v[:, :, :4]"),
    ("takes the keys alone", "2", "skeleton", "k, v = cache.append(k, v)",
     "k, _ = cache.append(k, v)"),
    ("forgets what does not fit", "4", "skeleton",
     "return self.length + T <= self.block_size", "if self.length + T > self.block_size:\n"
     "            self.clear()\n        return True"),
    ("clear makes another cache", "4", "skeleton", "self.keys = self.values = None\n\n\n",
     "return KeyValueCache(self.block_size)\n\n\n"),
    ("mask from the corner and heads mixed", "5", "skeleton", "diagonal=S - T + 1", "diagonal=1",
     ".transpose(1, 2).reshape(B, T, C)", ".reshape(B, T, C)"),
    ("no mask for pieces and no projection", "5", "skeleton", "        scores = scores.mask",
     "        if S == T:\n            scores = scores.mask", "self.c_proj(merged)", "merged"),
]  # fmt: skip


def wrong_text(entry: tuple[str, ...]) -> str:
    """A right file, made wrong by the replacements in `entry`, a row of WRONG."""
    text = RIGHT[entry[2]]
    for old, new in zip(entry[3::2], entry[4::2], strict=True):
        assert old in text, (entry[0], old)
        text = text.replace(old, new)
    return text
