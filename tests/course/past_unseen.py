"""More right and wrong attention with a past (earlier keys and values).

The check was complete before these files were written.
"""

from __future__ import annotations

HEAD = """import math
import torch
from torch import nn
from torch.nn import functional as F


"""
# In the style of a lecture: a module for each head, and the past is a list with a pair (k, v) for
# each head.
HEADS = (
    HEAD
    + """class Head(nn.Module):
    def __init__(self, n_embd, head_size, block_size, dropout):
        super().__init__()
        self.key = nn.Linear(n_embd, head_size, bias=False)
        self.query = nn.Linear(n_embd, head_size, bias=False)
        self.value = nn.Linear(n_embd, head_size, bias=False)
        self.register_buffer("tril", torch.tril(torch.ones(block_size, block_size)))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x, past=None):
        B, T, C = x.shape
        k = self.key(x)
        q = self.query(x)
        v = self.value(x)
        P = 0
        if past is not None:
            pk, pv = past
            P = pk.shape[1]
            k = torch.cat((pk, k), dim=1)
            v = torch.cat((pv, v), dim=1)
        wei = q @ k.transpose(-2, -1) * k.shape[-1] ** -0.5
        wei = wei.masked_fill(self.tril[P : P + T, : P + T] == 0, float("-inf"))
        wei = F.softmax(wei, dim=-1)
        wei = self.dropout(wei)
        return wei @ v, (k, v)


class MultiHeadAttention(nn.Module):
    def __init__(self, n_embd, n_head, block_size, dropout=0.0):
        super().__init__()
        head_size = n_embd // n_head
        self.heads = nn.ModuleList(
            [Head(n_embd, head_size, block_size, dropout) for _ in range(n_head)]
        )
        self.proj = nn.Linear(n_embd, n_embd)

    def forward(self, x, past=None):
        if past is None:
            past = [None] * len(self.heads)
        outs, presents = [], []
        for head, p in zip(self.heads, past):
            out, present = head(x, p)
            outs.append(out)
            presents.append(present)
        return self.proj(torch.cat(outs, dim=-1)), presents
"""
)
# Grouped queries, rotary positions in a helper class, and no argument use_cache.
GROUPED = (
    HEAD
    + """class RotaryEmbedding(nn.Module):
    def __init__(self, dim, base=10000.0):
        super().__init__()
        inv_freq = 1.0 / (base ** (torch.arange(0, dim, 2).float() / dim))
        self.register_buffer("inv_freq", inv_freq, persistent=False)

    def forward(self, x, offset=0):
        t = torch.arange(offset, offset + x.shape[2], device=x.device).type_as(self.inv_freq)
        freqs = torch.outer(t, self.inv_freq)
        cos, sin = freqs.cos(), freqs.sin()
        x1, x2 = x[..., 0::2], x[..., 1::2]
        out = torch.stack((x1 * cos - x2 * sin, x1 * sin + x2 * cos), dim=-1)
        return out.flatten(-2)


def repeat_kv(x, n):
    return x if n == 1 else x.repeat_interleave(n, dim=1)


class GroupedQueryAttention(nn.Module):
    def __init__(self, d_model, n_heads, n_kv_heads=None):
        super().__init__()
        self.n_heads = n_heads
        self.n_kv_heads = n_kv_heads or n_heads
        self.d = d_model // n_heads
        self.q_proj = nn.Linear(d_model, n_heads * self.d, bias=False)
        self.k_proj = nn.Linear(d_model, self.n_kv_heads * self.d, bias=False)
        self.v_proj = nn.Linear(d_model, self.n_kv_heads * self.d, bias=False)
        self.o_proj = nn.Linear(d_model, d_model, bias=False)
        self.rope = RotaryEmbedding(self.d)

    def forward(self, x, past_kv=None):
        b, t, _ = x.shape
        q = self.q_proj(x).view(b, t, self.n_heads, self.d).transpose(1, 2)
        k = self.k_proj(x).view(b, t, self.n_kv_heads, self.d).transpose(1, 2)
        v = self.v_proj(x).view(b, t, self.n_kv_heads, self.d).transpose(1, 2)
        offset = past_kv[0].size(2) if past_kv is not None else 0
        q = self.rope(q, offset)
        k = self.rope(k, offset)
        if past_kv is not None:
            k = torch.cat((past_kv[0], k), dim=2)
            v = torch.cat((past_kv[1], v), dim=2)
        kv = (k, v)
        k = repeat_kv(k, self.n_heads // self.n_kv_heads)
        v = repeat_kv(v, self.n_heads // self.n_kv_heads)
        att = q @ k.transpose(-1, -2) / math.sqrt(self.d)
        i = torch.arange(offset, offset + t).view(-1, 1)
        j = torch.arange(offset + t).view(1, -1)
        att = att.masked_fill(j > i, float("-inf"))
        y = att.softmax(-1) @ v
        return self.o_proj(y.transpose(1, 2).reshape(b, t, -1)), kv
"""
)
# The past is a dataclass. A function outside the class computes the attention, and forward has an
# optional argument for a mask.
DATACLASS = (
    HEAD
    + """from dataclasses import dataclass


@dataclass
class Past:
    keys: torch.Tensor
    values: torch.Tensor

    @property
    def tokens(self):
        return self.keys.shape[-2]


def attend(q, k, v, first):
    t, s = q.shape[-2], k.shape[-2]
    scores = torch.einsum("bhqd,bhkd->bhqk", q, k) / q.shape[-1] ** 0.5
    ok = torch.arange(s)[None, :] <= torch.arange(first, first + t)[:, None]
    scores = torch.where(ok, scores, torch.tensor(float("-inf")))
    return torch.einsum("bhqk,bhkd->bhqd", torch.softmax(scores, -1), v)


class CausalAttention(nn.Module):
    def __init__(self, emb_dim, n_heads, qkv_bias=True):
        super().__init__()
        self.n_heads = n_heads
        self.qkv = nn.Linear(emb_dim, 3 * emb_dim, bias=qkv_bias)
        self.out = nn.Linear(emb_dim, emb_dim)

    def forward(self, x, attention_mask=None, past_key_values=None):
        b, t, e = x.shape
        q, k, v = self.qkv(x).view(b, t, 3, self.n_heads, -1).permute(2, 0, 3, 1, 4)
        first = 0
        if past_key_values is not None:
            first = past_key_values.tokens
            k = torch.cat([past_key_values.keys, k], dim=-2)
            v = torch.cat([past_key_values.values, v], dim=-2)
        y = attend(q, k, v, first)
        y = y.permute(0, 2, 1, 3).reshape(b, t, e)
        return self.out(y), Past(k, v)
"""
)
# The caller allocates the buffers for keys and values, and passes the offset of the new tokens.
BUFFERS = (
    HEAD
    + """class Attention(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.H, self.D = cfg.n_head, cfg.n_embd // cfg.n_head
        self.wqkv = nn.Linear(cfg.n_embd, 3 * cfg.n_embd, bias=cfg.bias)
        self.wo = nn.Linear(cfg.n_embd, cfg.n_embd, bias=cfg.bias)

    def forward(self, x, k_cache, v_cache, start_pos=0):
        B, T, C = x.shape
        q, k, v = self.wqkv(x).split(C, dim=-1)
        q = q.view(B, T, self.H, self.D).transpose(1, 2)
        k = k.view(B, T, self.H, self.D).transpose(1, 2)
        v = v.view(B, T, self.H, self.D).transpose(1, 2)
        k_cache[:, :, start_pos : start_pos + T] = k
        v_cache[:, :, start_pos : start_pos + T] = v
        end = start_pos + T
        mask = torch.full((T, end), float("-inf")).triu(start_pos + 1)
        a = q @ k_cache[:, :, :end].transpose(-1, -2) / math.sqrt(self.D) + mask
        y = a.softmax(-1) @ v_cache[:, :, :end]
        return self.wo(y.transpose(1, 2).reshape(B, T, C))
"""
)
# The past is an object whose class is not in the file, such as a cache of another library.
UPDATE = (
    HEAD
    + """class SelfAttention(nn.Module):
    def __init__(self, config, layer_idx=0):
        super().__init__()
        self.layer_idx = layer_idx
        self.num_heads = config.num_attention_heads
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden_states, past_key_values=None):
        shape = (*hidden_states.shape[:-1], self.num_heads, -1)
        q = self.q_proj(hidden_states).view(shape).transpose(1, 2)
        k = self.k_proj(hidden_states).view(shape).transpose(1, 2)
        v = self.v_proj(hidden_states).view(shape).transpose(1, 2)
        if past_key_values is not None:
            k, v = past_key_values.update(k, v, self.layer_idx)
        T, S = q.shape[2], k.shape[2]
        w = q @ k.transpose(2, 3) * q.shape[-1] ** -0.5
        w = w + torch.full((T, S), float("-inf")).triu(S - T + 1)
        y = torch.softmax(w, dim=-1) @ v
        return self.o_proj(y.transpose(1, 2).flatten(2)), None
"""
)
# If use_cache is True, forward returns the output and the past. By default it returns the output
# alone.
OPTIONAL = (
    HEAD
    + """class CausalSelfAttention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.n_head = config.n_head
        self.q = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.k = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.v = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)

    def heads(self, t):
        return t.unflatten(-1, (self.n_head, -1)).transpose(1, 2)

    def forward(self, x, past_key_value=None, use_cache=False):
        q, k, v = self.heads(self.q(x)), self.heads(self.k(x)), self.heads(self.v(x))
        if past_key_value is not None:
            k = torch.cat((past_key_value[0], k), dim=2)
            v = torch.cat((past_key_value[1], v), dim=2)
        T, S = q.size(2), k.size(2)
        if T == 1:
            y = F.scaled_dot_product_attention(q, k, v)
        elif T == S:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            bias = torch.zeros(T, S).masked_fill(
                torch.ones(T, S, dtype=torch.bool).triu(S - T + 1), float("-inf")
            )
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        y = self.proj(y.transpose(1, 2).flatten(2))
        return (y, (k, v)) if use_cache else y
"""
)
# A complete network with learned position embeddings and blocks. It takes a list with one past for
# each block.
NETWORK = (
    HEAD
    + """class CausalSelfAttention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.n_head = config.n_head
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd)

    def forward(self, x, past=None):
        B, T, C = x.size()
        q, k, v = self.c_attn(x).chunk(3, dim=-1)
        q, k, v = (z.view(B, T, self.n_head, -1).transpose(1, 2) for z in (q, k, v))
        if past is not None:
            k = torch.cat((past[0], k), dim=2)
            v = torch.cat((past[1], v), dim=2)
        S = k.size(2)
        att = q @ k.transpose(-2, -1) / math.sqrt(k.size(-1))
        att = att.masked_fill(torch.ones(T, S).tril(S - T) == 0, float("-inf"))
        y = F.softmax(att, dim=-1) @ v
        return self.c_proj(y.transpose(1, 2).reshape(B, T, C)), (k, v)


class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd)
        self.attn = CausalSelfAttention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd)
        self.mlp = nn.Sequential(
            nn.Linear(config.n_embd, 4 * config.n_embd), nn.GELU(),
            nn.Linear(4 * config.n_embd, config.n_embd),
        )

    def forward(self, x, past=None):
        a, present = self.attn(self.ln_1(x), past)
        x = x + a
        return x + self.mlp(self.ln_2(x)), present


class GPT(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.block_size, config.n_embd)
        self.h = nn.ModuleList([Block(config) for _ in range(config.n_layer)])
        self.ln_f = nn.LayerNorm(config.n_embd)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)

    def forward(self, idx, pasts=None):
        T = idx.size(1)
        start = 0 if pasts is None else pasts[0][0].size(2)
        pos = torch.arange(start, start + T, device=idx.device)
        x = self.wte(idx) + self.wpe(pos)
        presents = []
        for i, block in enumerate(self.h):
            x, present = block(x, None if pasts is None else pasts[i])
            presents.append(present)
        return self.lm_head(self.ln_f(x)), presents
"""
)

RIGHT = {
    "heads": HEADS,
    "grouped": GROUPED,
    "dataclass": DATACLASS,
    "buffers": BUFFERS,
    "update": UPDATE,
    "optional": OPTIONAL,
    "network": NETWORK,
}
# The mistakes. An entry says in words what is wrong, and holds the number of the wrong step, the
# name of a right file in RIGHT, and then pairs: a text of this right file, and the text that
# replaces it.
WRONG: list[tuple[str, ...]] = [
    ("heads: new first", "1", "heads", "(pk, k)", "(k, pk)", "(pv, v)", "(v, pv)"),
    ("heads: channels", "1", "heads", "(pk, k), dim=1", "(pk, k), dim=2"),
    ("heads: past not handed on", "1", "heads", "head(x, p)", "head(x, None)"),
    ("grouped: values not joined", "1", "grouped",
     "            v = torch.cat((past_kv[1], v), dim=2)\n", ""),
    ("grouped: new first", "1", "grouped", "(past_kv[0], k)", "(k, past_kv[0])",
     "(past_kv[1], v)", "(v, past_kv[1])"),
    ("dataclass: batch", "1", "dataclass", "past_key_values.keys, k], dim=-2",
     "past_key_values.keys, k], dim=0", "past_key_values.values, v], dim=-2",
     "past_key_values.values, v], dim=0"),
    ("buffers: always at 0", "1", "buffers", "k_cache[:, :, start_pos : start_pos + T] = k",
     "k_cache[:, :, :T] = k", "v_cache[:, :, start_pos : start_pos + T] = v",
     "v_cache[:, :, :T] = v"),
    ("buffers: values not written", "1", "buffers",
     "        v_cache[:, :, start_pos : start_pos + T] = v\n", ""),
    ("optional: oldest one lost", "1", "optional", "torch.cat((past_key_value[0], k), dim=2)",
     "torch.cat((past_key_value[0][:, :, 1:], k), dim=2)",
     "torch.cat((past_key_value[1], v), dim=2)",
     "torch.cat((past_key_value[1][:, :, 1:], v), dim=2)"),
    ("network: keys in the values", "1", "network", "(past[1], v)", "(past[0], v)"),
    ("heads: new ones returned", "2", "heads", "        P = 0\n",
     "        P = 0\n        new = (k, v)\n",
     "return wei @ v, (k, v)", "return wei @ v, new"),
    ("update: result not used", "2", "update", "k, v = past_key_values.update",
     "past_key_values.update"),
    ("update: values dropped", "2", "update", "k, v = past_key_values.update",
     "k, _ = past_key_values.update"),
    ("optional: never returned", "2", "optional", "(y, (k, v)) if use_cache else y", "y"),
    ("dataclass: swapped", "2", "dataclass", "Past(k, v)", "Past(v, k)"),
    ("grouped: from 0", "3", "grouped", "q = self.rope(q, offset)", "q = self.rope(q)",
     "k = self.rope(k, offset)", "k = self.rope(k)"),
    ("grouped: queries from 0", "3", "grouped", "q = self.rope(q, offset)", "q = self.rope(q)"),
    ("grouped: one too far", "3", "grouped", "past_kv[0].size(2) if past_kv is not None else 0\n",
     "past_kv[0].size(2) + 1 if past_kv is not None else 0\n", "torch.arange(offset, offset + t)",
     "torch.arange(k.size(2) - t, k.size(2))", "torch.arange(offset + t)",
     "torch.arange(k.size(2))"),
    ("network: positions from 0", "3", "network", "torch.arange(start, start + T, device",
     "torch.arange(T, device"),
    ("network: positions one too far", "3", "network", "pasts[0][0].size(2)",
     "pasts[0][0].size(2) + 1"),
    ("heads: mask from the corner", "5", "heads", "self.tril[P : P + T, : P + T]",
     "self.tril[:T, : P + T]"),
    ("heads: mask of T", "5", "heads", "self.tril[P : P + T, : P + T]", "self.tril[:T, :T]"),
    ("grouped: corner", "5", "grouped", "torch.arange(offset, offset + t).view",
     "torch.arange(t).view"),
    ("grouped: itself", "5", "grouped", "j > i", "j >= i"),
    ("dataclass: corner", "5", "dataclass", "torch.arange(first, first + t)", "torch.arange(t)"),
    ("dataclass: wrong way", "5", "dataclass", "<= torch.arange(first", ">= torch.arange(first"),
    ("buffers: diagonal", "5", "buffers", ".triu(start_pos + 1)", ".triu(1)"),
    ("buffers: scale", "5", "buffers", "math.sqrt(self.D) + mask",
     "math.sqrt(self.H * self.D) + mask"),
    ("update: no mask", "5", "update",
     "        w = w + torch.full((T, S), float(\"-inf\")).triu(S - T + 1)\n",
     "        if past_key_values is None:\n"
     "            w = w + torch.full((T, S), float(\"-inf\")).triu(1)\n"),
    ("optional: is_causal", "5", "optional", "attn_mask=bias", "is_causal=True"),
    ("optional: no mask", "5", "optional", ", attn_mask=bias", ""),
    ("network: mask for new ones", "5", "network", "torch.ones(T, S).tril(S - T)",
     "torch.cat((torch.zeros(T, S - T), torch.ones(T, T).tril()), dim=1)"),
    ("heads: softmax over queries", "6", "heads", "F.softmax(wei, dim=-1)",
     "F.softmax(wei, dim=1)"),
    ("dataclass: heads mixed", "6", "dataclass", "y.permute(0, 2, 1, 3).reshape", "y.reshape"),
    ("optional: not projected", "6", "optional", "self.proj(y.transpose(1, 2).flatten(2))",
     "y.transpose(1, 2).flatten(2)"),
]  # fmt: skip


def wrong_text(entry: tuple[str, ...]) -> str:
    """The text of a wrong file. `entry` names a right file, and what to replace in this file."""
    text = RIGHT[entry[2]]
    for old, new in zip(entry[3::2], entry[4::2], strict=True):
        assert old in text, (entry[0], old)
        text = text.replace(old, new)
    return text
