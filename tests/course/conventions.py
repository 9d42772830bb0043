# ruff: noqa: E501 -- the files are written as people write them
"""Right attention files in the conventions of other courses, books and projects.

They are written for this project, each in the style of a course, book or project. WRONG lists
mistakes for most of the files. A mistake is (the number of the wrong step, a text of the file, the
wrong text that replaces it).
"""

from __future__ import annotations

HEAD = """import math

import torch
import torch.nn as nn
import torch.nn.functional as F

"""

BOOK = (
    HEAD
    + """
class MultiHeadAttention(nn.Module):
    def __init__(self, d_in, d_out, context_length, dropout, num_heads, qkv_bias=False):
        super().__init__()
        assert d_out % num_heads == 0, "d_out must be divisible by num_heads"
        self.d_out = d_out
        self.num_heads = num_heads
        self.head_dim = d_out // num_heads
        self.W_query = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.W_key = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.W_value = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.out_proj = nn.Linear(d_out, d_out)
        self.dropout = nn.Dropout(dropout)
        self.register_buffer("mask", torch.triu(torch.ones(context_length, context_length), diagonal=1))

    def forward(self, x):
        b, num_tokens, d_in = x.shape
        keys = self.W_key(x)
        queries = self.W_query(x)
        values = self.W_value(x)
        keys = keys.view(b, num_tokens, self.num_heads, self.head_dim)
        values = values.view(b, num_tokens, self.num_heads, self.head_dim)
        queries = queries.view(b, num_tokens, self.num_heads, self.head_dim)
        keys = keys.transpose(1, 2)
        queries = queries.transpose(1, 2)
        values = values.transpose(1, 2)
        attn_scores = queries @ keys.transpose(2, 3)
        mask_bool = self.mask.bool()[:num_tokens, :num_tokens]
        attn_scores.masked_fill_(mask_bool, -torch.inf)
        attn_weights = torch.softmax(attn_scores / keys.shape[-1] ** 0.5, dim=-1)
        attn_weights = self.dropout(attn_weights)
        context_vec = (attn_weights @ values).transpose(1, 2)
        context_vec = context_vec.contiguous().view(b, num_tokens, self.d_out)
        return self.out_proj(context_vec)


if __name__ == "__main__":
    torch.manual_seed(123)
    batch = torch.stack((torch.rand(6, 3), torch.rand(6, 3)), dim=0)
    print(MultiHeadAttention(3, 2, 6, 0.0, num_heads=2)(batch))
"""
)

BOOK_WRAPPER = (
    HEAD
    + """
class CausalAttention(nn.Module):
    def __init__(self, d_in, d_out, context_length, dropout, qkv_bias=False):
        super().__init__()
        self.d_out = d_out
        self.W_query = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.W_key = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.W_value = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.dropout = nn.Dropout(dropout)
        self.register_buffer("mask", torch.triu(torch.ones(context_length, context_length), diagonal=1))

    def forward(self, x):
        b, num_tokens, d_in = x.shape
        keys = self.W_key(x)
        queries = self.W_query(x)
        values = self.W_value(x)
        attn_scores = queries @ keys.transpose(1, 2)
        attn_scores.masked_fill_(self.mask.bool()[:num_tokens, :num_tokens], -torch.inf)
        attn_weights = torch.softmax(attn_scores / keys.shape[-1] ** 0.5, dim=-1)
        attn_weights = self.dropout(attn_weights)
        return attn_weights @ values


class MultiHeadAttentionWrapper(nn.Module):
    def __init__(self, d_in, d_out, context_length, dropout, num_heads, qkv_bias=False):
        super().__init__()
        self.heads = nn.ModuleList(
            [CausalAttention(d_in, d_out // num_heads, context_length, dropout, qkv_bias) for _ in range(num_heads)]
        )

    def forward(self, x):
        return torch.cat([head(x) for head in self.heads], dim=-1)
"""
)

ONE_HEAD = BOOK_WRAPPER[: BOOK_WRAPPER.index("class MultiHeadAttentionWrapper")]

LECTURE = (
    HEAD
    + '''
batch_size = 64
block_size = 256
max_iters = 5000
learning_rate = 3e-4
device = "cuda" if torch.cuda.is_available() else "cpu"
n_embd = 384
n_head = 6
dropout = 0.2

torch.manual_seed(1337)
with open("input.txt", "r", encoding="utf-8") as f:
    text = f.read()
chars = sorted(list(set(text)))


class Head(nn.Module):
    """one head of self-attention"""

    def __init__(self, head_size):
        super().__init__()
        self.key = nn.Linear(n_embd, head_size, bias=False)
        self.query = nn.Linear(n_embd, head_size, bias=False)
        self.value = nn.Linear(n_embd, head_size, bias=False)
        self.register_buffer("tril", torch.tril(torch.ones(block_size, block_size)))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x):
        B, T, C = x.shape
        k = self.key(x)
        q = self.query(x)
        wei = q @ k.transpose(-2, -1) * k.shape[-1] ** -0.5
        wei = wei.masked_fill(self.tril[:T, :T] == 0, float("-inf"))
        wei = F.softmax(wei, dim=-1)
        wei = self.dropout(wei)
        v = self.value(x)
        return wei @ v


class MultiHeadAttention(nn.Module):
    def __init__(self, num_heads, head_size):
        super().__init__()
        self.heads = nn.ModuleList([Head(head_size) for _ in range(num_heads)])
        self.proj = nn.Linear(head_size * num_heads, n_embd)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x):
        out = torch.cat([h(x) for h in self.heads], dim=-1)
        return self.dropout(self.proj(out))


class Block(nn.Module):
    def __init__(self, n_embd, n_head):
        super().__init__()
        self.sa = MultiHeadAttention(n_head, n_embd // n_head)

    def forward(self, x):
        return x + self.sa(x)


model = Block(n_embd, n_head).to(device)
for iter in range(max_iters):
    print(f"step {iter}")
'''
)

MINGPT = (
    HEAD
    + """
class CausalSelfAttention(nn.Module):
    def __init__(self, config):
        super().__init__()
        assert config.n_embd % config.n_head == 0
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd)
        self.attn_dropout = nn.Dropout(config.attn_pdrop)
        self.resid_dropout = nn.Dropout(config.resid_pdrop)
        self.register_buffer(
            "bias",
            torch.tril(torch.ones(config.block_size, config.block_size)).view(
                1, 1, config.block_size, config.block_size
            ),
        )
        self.n_head = config.n_head
        self.n_embd = config.n_embd

    def forward(self, x):
        B, T, C = x.size()
        q, k, v = self.c_attn(x).split(self.n_embd, dim=2)
        k = k.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)
        q = q.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)
        v = v.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)
        att = (q @ k.transpose(-2, -1)) * (1.0 / math.sqrt(k.size(-1)))
        att = att.masked_fill(self.bias[:, :, :T, :T] == 0, float("-inf"))
        att = F.softmax(att, dim=-1)
        att = self.attn_dropout(att)
        y = att @ v
        y = y.transpose(1, 2).contiguous().view(B, T, C)
        return self.resid_dropout(self.c_proj(y))
"""
)

OWN_LINEAR = (
    HEAD
    + """
class Linear(nn.Module):
    def __init__(self, in_features, out_features, device=None, dtype=None):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_features, in_features, device=device, dtype=dtype))
        nn.init.trunc_normal_(self.weight)

    def forward(self, x):
        return torch.einsum("...i,oi->...o", x, self.weight)


def softmax(x, dim):
    x = torch.exp(x - x.max(dim=dim, keepdim=True).values)
    return x / x.sum(dim=dim, keepdim=True)


def scaled_dot_product_attention(q, k, v, mask=None):
    scores = torch.einsum("...qd,...kd->...qk", q, k) / math.sqrt(q.shape[-1])
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return softmax(scores, dim=-1) @ v


class CausalMultiHeadSelfAttention(nn.Module):
    def __init__(self, d_model: int, num_heads: int, device=None, dtype=None):
        super().__init__()
        self.d_model = d_model
        self.num_heads = num_heads
        self.q_proj = Linear(d_model, d_model, device, dtype)
        self.k_proj = Linear(d_model, d_model, device, dtype)
        self.v_proj = Linear(d_model, d_model, device, dtype)
        self.output_proj = Linear(d_model, d_model, device, dtype)

    def forward(self, x, token_positions=None):
        *batch, seq, _ = x.shape
        q, k, v = (
            proj(x).view(*batch, seq, self.num_heads, -1).transpose(-3, -2)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        mask = torch.tril(torch.ones(seq, seq, dtype=torch.bool, device=x.device))
        out = scaled_dot_product_attention(q, k, v, mask)
        out = out.transpose(-3, -2).reshape(*batch, seq, self.d_model)
        return self.output_proj(out)
"""
)

ARENA = """from dataclasses import dataclass

import torch as t
from jaxtyping import Float
from torch import Tensor, nn


@dataclass
class Config:
    d_model: int = 768
    debug: bool = True
    init_range: float = 0.02
    n_ctx: int = 1024
    d_head: int = 64
    n_heads: int = 12


cfg = Config()


class Attention(nn.Module):
    IGNORE: Float[Tensor, ""]

    def __init__(self, cfg: Config):
        super().__init__()
        self.cfg = cfg
        self.W_Q = nn.Parameter(t.empty((cfg.n_heads, cfg.d_model, cfg.d_head)))
        self.W_K = nn.Parameter(t.empty((cfg.n_heads, cfg.d_model, cfg.d_head)))
        self.W_V = nn.Parameter(t.empty((cfg.n_heads, cfg.d_model, cfg.d_head)))
        self.W_O = nn.Parameter(t.empty((cfg.n_heads, cfg.d_head, cfg.d_model)))
        self.b_Q = nn.Parameter(t.zeros((cfg.n_heads, cfg.d_head)))
        self.b_K = nn.Parameter(t.zeros((cfg.n_heads, cfg.d_head)))
        self.b_V = nn.Parameter(t.zeros((cfg.n_heads, cfg.d_head)))
        self.b_O = nn.Parameter(t.zeros((cfg.d_model)))
        nn.init.normal_(self.W_Q, std=self.cfg.init_range)
        self.register_buffer("IGNORE", t.tensor(float("-inf"), dtype=t.float32))

    def forward(self, normalized_resid_pre: Float[Tensor, "batch posn d_model"]) -> Float[Tensor, "batch posn d_model"]:
        x = normalized_resid_pre
        q = t.einsum("bpm,nmh->bpnh", x, self.W_Q) + self.b_Q
        k = t.einsum("bpm,nmh->bpnh", x, self.W_K) + self.b_K
        v = t.einsum("bpm,nmh->bpnh", x, self.W_V) + self.b_V
        attn_scores = t.einsum("bqnh,bknh->bnqk", q, k)
        attn_scores_masked = self.apply_causal_mask(attn_scores / self.cfg.d_head**0.5)
        attn_pattern = attn_scores_masked.softmax(-1)
        z = t.einsum("bknh,bnqk->bqnh", v, attn_pattern)
        return t.einsum("bqnh,nhm->bqm", z, self.W_O) + self.b_O

    def apply_causal_mask(self, attn_scores):
        all_ones = t.ones(attn_scores.size(-2), attn_scores.size(-1), device=attn_scores.device)
        mask = t.triu(all_ones, diagonal=1).bool()
        attn_scores.masked_fill_(mask, self.IGNORE)
        return attn_scores
"""

ANNOTATED = (
    HEAD
    + """import copy


def clones(module, N):
    return nn.ModuleList([copy.deepcopy(module) for _ in range(N)])


def attention(query, key, value, mask=None, dropout=None):
    d_k = query.size(-1)
    scores = torch.matmul(query, key.transpose(-2, -1)) / math.sqrt(d_k)
    if mask is not None:
        scores = scores.masked_fill(mask == 0, -1e9)
    p_attn = scores.softmax(dim=-1)
    if dropout is not None:
        p_attn = dropout(p_attn)
    return torch.matmul(p_attn, value), p_attn


class MultiHeadedAttention(nn.Module):
    def __init__(self, h, d_model, dropout=0.1):
        super(MultiHeadedAttention, self).__init__()
        assert d_model % h == 0
        self.d_k = d_model // h
        self.h = h
        self.linears = clones(nn.Linear(d_model, d_model), 4)
        self.attn = None
        self.dropout = nn.Dropout(p=dropout)

    def forward(self, query, key, value, mask=None):
        if mask is not None:
            mask = mask.unsqueeze(1)
        nbatches = query.size(0)
        query, key, value = [
            lin(x).view(nbatches, -1, self.h, self.d_k).transpose(1, 2)
            for lin, x in zip(self.linears, (query, key, value))
        ]
        x, self.attn = attention(query, key, value, mask=mask, dropout=self.dropout)
        x = x.transpose(1, 2).contiguous().view(nbatches, -1, self.h * self.d_k)
        return self.linears[-1](x)
"""
)

CONV1D = (
    HEAD
    + """
class Conv1D(nn.Module):
    def __init__(self, nf, nx):
        super().__init__()
        self.nf = nf
        self.weight = nn.Parameter(torch.empty(nx, nf))
        self.bias = nn.Parameter(torch.zeros(nf))
        nn.init.normal_(self.weight, std=0.02)

    def forward(self, x):
        size_out = x.size()[:-1] + (self.nf,)
        return torch.addmm(self.bias, x.reshape(-1, x.size(-1)), self.weight).view(size_out)


class GPT2Attention(nn.Module):
    def __init__(self, config, layer_idx=None):
        super().__init__()
        max_positions = config.max_position_embeddings
        self.register_buffer("bias", torch.tril(torch.ones((max_positions, max_positions), dtype=torch.bool)))
        self.embed_dim = config.hidden_size
        self.num_heads = config.num_attention_heads
        self.head_dim = self.embed_dim // self.num_heads
        self.c_attn = Conv1D(3 * self.embed_dim, self.embed_dim)
        self.c_proj = Conv1D(self.embed_dim, self.embed_dim)
        self.attn_dropout = nn.Dropout(config.attn_pdrop)

    def forward(self, hidden_states, layer_past=None, use_cache=False):
        query, key, value = self.c_attn(hidden_states).split(self.embed_dim, dim=2)
        shape = (*query.shape[:-1], self.num_heads, self.head_dim)
        query, key, value = (part.view(shape).transpose(1, 2) for part in (query, key, value))
        scores = query @ key.transpose(-1, -2) / self.head_dim**0.5
        n = query.size(-2)
        scores = torch.where(self.bias[:n, :n], scores, torch.finfo(scores.dtype).min)
        weights = self.attn_dropout(scores.softmax(-1))
        out = (weights @ value).transpose(1, 2).reshape(hidden_states.shape)
        return self.c_proj(out), weights
"""
)

TORCH_MHA = (
    HEAD
    + """
class SelfAttention(nn.Module):
    def __init__(self, embed_dim, num_heads, dropout=0.0):
        super().__init__()
        self.mha = nn.MultiheadAttention(embed_dim, num_heads, dropout=dropout, batch_first=True)

    def forward(self, x):
        T = x.size(1)
        mask = torch.triu(torch.ones(T, T, device=x.device), diagonal=1).bool()
        out, _ = self.mha(x, x, x, attn_mask=mask, need_weights=False)
        return out
"""
)

VIT = (
    HEAD
    + """
class Attention(nn.Module):
    def __init__(self, dim, num_heads=8, qkv_bias=False, attn_drop=0.0, proj_drop=0.0):
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = dim // num_heads
        self.scale = self.head_dim**-0.5
        self.qkv = nn.Linear(dim, dim * 3, bias=qkv_bias)
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x):
        B, N, C = x.shape
        qkv = self.qkv(x).reshape(B, N, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        attn = q * self.scale @ k.transpose(-2, -1)
        attn = attn + torch.full((N, N), float("-inf"), device=x.device, dtype=x.dtype).triu(1)
        attn = attn.softmax(dim=-1)
        x = self.attn_drop(attn) @ v
        x = x.transpose(1, 2).reshape(B, N, C)
        return self.proj_drop(self.proj(x))
"""
)

BY_HEAD = (
    HEAD
    + """
class MultiheadAttention(nn.Module):
    def __init__(self, input_dim, embed_dim, num_heads):
        super().__init__()
        self.embed_dim = embed_dim
        self.num_heads = num_heads
        self.head_dim = embed_dim // num_heads
        self.qkv_proj = nn.Linear(input_dim, 3 * embed_dim)
        self.o_proj = nn.Linear(embed_dim, embed_dim)

    def forward(self, x, mask=None, return_attention=False):
        batch_size, seq_length, _ = x.size()
        qkv = self.qkv_proj(x)
        qkv = qkv.reshape(batch_size, seq_length, self.num_heads, 3 * self.head_dim)
        qkv = qkv.permute(0, 2, 1, 3)
        q, k, v = qkv.chunk(3, dim=-1)
        attn_logits = torch.matmul(q, k.transpose(-2, -1)) / math.sqrt(q.size()[-1])
        if mask is not None:
            attn_logits = attn_logits.masked_fill(mask == 0, -9e15)
        attention = F.softmax(attn_logits, dim=-1)
        values = torch.matmul(attention, v)
        values = values.permute(0, 2, 1, 3).reshape(batch_size, seq_length, self.embed_dim)
        o = self.o_proj(values)
        return (o, attention) if return_attention else o
"""
)

TO_KV = (
    HEAD
    + """
class Attention(nn.Module):
    def __init__(self, dim, *, heads=8, dim_head=64, dropout=0.0, causal=True):
        super().__init__()
        inner_dim = dim_head * heads
        self.heads = heads
        self.scale = dim_head**-0.5
        self.causal = causal
        self.to_q = nn.Linear(dim, inner_dim, bias=False)
        self.to_kv = nn.Linear(dim, inner_dim * 2, bias=False)
        self.to_out = nn.Sequential(nn.Linear(inner_dim, dim), nn.Dropout(dropout))

    def forward(self, x):
        b, n, _ = x.shape
        q, (k, v) = self.to_q(x), self.to_kv(x).chunk(2, dim=-1)
        q, k, v = (t.reshape(b, n, self.heads, -1).transpose(1, 2) for t in (q, k, v))
        sim = torch.einsum("bhid,bhjd->bhij", q, k) * self.scale
        if self.causal:
            hidden = torch.ones((n, n), device=x.device, dtype=torch.bool).triu(1)
            sim = sim.masked_fill(hidden, -torch.finfo(sim.dtype).max)
        attn = sim.softmax(dim=-1)
        out = torch.einsum("bhij,bhjd->bhid", attn, v)
        return self.to_out(out.transpose(1, 2).reshape(b, n, -1))
"""
)

SHARED = (
    HEAD
    + """
class SelfAttention(nn.Module):
    def __init__(self, embed_size, heads):
        super(SelfAttention, self).__init__()
        self.embed_size = embed_size
        self.heads = heads
        self.head_dim = embed_size // heads
        self.values = nn.Linear(self.head_dim, self.head_dim, bias=False)
        self.keys = nn.Linear(self.head_dim, self.head_dim, bias=False)
        self.queries = nn.Linear(self.head_dim, self.head_dim, bias=False)
        self.fc_out = nn.Linear(heads * self.head_dim, embed_size)

    def forward(self, values, keys, query, mask):
        N = query.shape[0]
        value_len, key_len, query_len = values.shape[1], keys.shape[1], query.shape[1]
        values = self.values(values.reshape(N, value_len, self.heads, self.head_dim))
        keys = self.keys(keys.reshape(N, key_len, self.heads, self.head_dim))
        queries = self.queries(query.reshape(N, query_len, self.heads, self.head_dim))
        energy = torch.einsum("nqhd,nkhd->nhqk", [queries, keys])
        if mask is not None:
            energy = energy.masked_fill(mask == 0, float("-1e20"))
        attention = torch.softmax(energy / self.head_dim ** (1 / 2), dim=3)
        out = torch.einsum("nhql,nlhd->nqhd", [attention, values])
        out = out.reshape(N, query_len, self.heads * self.head_dim)
        return self.fc_out(out)
"""
)

BARE = (
    HEAD
    + """
class MultiHeadSelfAttention(nn.Module):
    def __init__(self, hidden_size, n_heads):
        super().__init__()
        self.n_heads = n_heads
        self.W_q = nn.Parameter(torch.randn(hidden_size, hidden_size))
        self.W_k = nn.Parameter(torch.randn(hidden_size, hidden_size))
        self.W_v = nn.Parameter(torch.randn(hidden_size, hidden_size))
        self.W_o = nn.Parameter(torch.randn(hidden_size, hidden_size))

    def forward(self, x):
        batch, length, size = x.shape
        split = lambda t: t.view(batch, length, self.n_heads, -1).transpose(1, 2)
        q, k, v = split(x @ self.W_q), split(x @ self.W_k), split(x @ self.W_v)
        scores = q @ k.mT / (size // self.n_heads) ** 0.5
        visible = torch.ones(length, length, dtype=torch.bool, device=x.device).tril()
        weights = torch.softmax(scores.masked_fill(~visible, float("-inf")), dim=-1)
        return (weights @ v).transpose(1, 2).reshape(batch, length, size) @ self.W_o
"""
)

DICT = (
    HEAD
    + """
GPT_CONFIG_124M = {
    "vocab_size": 50257,
    "context_length": 1024,
    "emb_dim": 768,
    "n_heads": 12,
    "n_layers": 12,
    "drop_rate": 0.1,
    "qkv_bias": False,
}


class MaskedAttention(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.heads = cfg["n_heads"]
        self.to_qkv = nn.Linear(cfg["emb_dim"], 3 * cfg["emb_dim"], bias=cfg["qkv_bias"])
        self.to_out = nn.Linear(cfg["emb_dim"], cfg["emb_dim"])
        self.p = cfg["drop_rate"]

    def forward(self, x):
        b, t, e = x.shape
        q, k, v = self.to_qkv(x).view(b, t, 3, self.heads, e // self.heads).unbind(2)
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))
        p = self.p if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=p, is_causal=True)
        return self.to_out(y.transpose(1, 2).reshape(b, t, e))
"""
)

UNIFY = (
    HEAD
    + """
class SelfAttention(nn.Module):
    def __init__(self, emb, heads=8, mask=False):
        super().__init__()
        assert emb % heads == 0
        self.emb, self.heads, self.mask = emb, heads, mask
        self.tokeys = nn.Linear(emb, emb, bias=False)
        self.toqueries = nn.Linear(emb, emb, bias=False)
        self.tovalues = nn.Linear(emb, emb, bias=False)
        self.unifyheads = nn.Linear(emb, emb)

    def forward(self, x):
        b, t, e = x.size()
        h, s = self.heads, e // self.heads
        keys = self.tokeys(x).view(b, t, h, s)
        queries = self.toqueries(x).view(b, t, h, s)
        values = self.tovalues(x).view(b, t, h, s)
        keys = keys.transpose(1, 2).contiguous().view(b * h, t, s)
        queries = queries.transpose(1, 2).contiguous().view(b * h, t, s)
        values = values.transpose(1, 2).contiguous().view(b * h, t, s)
        dot = torch.bmm(queries, keys.transpose(1, 2)) / math.sqrt(s)
        if self.mask:
            i, j = torch.triu_indices(t, t, offset=1)
            dot[:, i, j] = float("-inf")
        dot = F.softmax(dot, dim=2)
        out = torch.bmm(dot, values).view(b, h, t, s)
        return self.unifyheads(out.transpose(1, 2).contiguous().view(b, t, s * h))
"""
)

KQV = (
    HEAD
    + """
class CausalAttention(nn.Module):
    def __init__(self, n_embed, num_heads, max_seq_len, drop=0.0):
        super().__init__()
        self.num_heads = num_heads
        self.kqv = nn.Linear(n_embed, 3 * n_embed)
        self.projection = nn.Linear(n_embed, n_embed)
        self.drop = nn.Dropout(drop)
        self.register_buffer("tri", torch.tril(torch.ones(max_seq_len, max_seq_len)))

    def forward(self, x):
        B, L, E = x.shape
        k, q, v = self.kqv(x).chunk(3, dim=-1)
        k = k.view(B, L, self.num_heads, -1).permute(0, 2, 1, 3)
        q = q.view(B, L, self.num_heads, -1).permute(0, 2, 1, 3)
        v = v.view(B, L, self.num_heads, -1).permute(0, 2, 1, 3)
        att = q @ k.transpose(2, 3) / math.sqrt(q.size(-1))
        att = att.masked_fill(self.tri[:L, :L] == 0, -1e10)
        att = self.drop(torch.softmax(att, dim=-1))
        out = (att @ v).permute(0, 2, 1, 3).reshape(B, L, E)
        return self.projection(out)
"""
)

THREE_LISTS = (
    HEAD
    + """
class MultiHead(nn.Module):
    def __init__(self, model_dim, n_heads, dropout_rate):
        super().__init__()
        size = model_dim // n_heads
        self.queries = nn.ModuleList([nn.Linear(model_dim, size) for _ in range(n_heads)])
        self.keys = nn.ModuleList([nn.Linear(model_dim, size) for _ in range(n_heads)])
        self.values = nn.ModuleList([nn.Linear(model_dim, size) for _ in range(n_heads)])
        self.combine = nn.Linear(model_dim, model_dim)
        self.scale = size**0.5
        self.drop = nn.Dropout(dropout_rate)

    def forward(self, x, attn_mask=None):
        n = x.shape[1]
        outs = []
        for to_q, to_k, to_v in zip(self.queries, self.keys, self.values):
            scores = to_q(x) @ to_k(x).transpose(1, 2) / self.scale
            future = torch.triu(torch.ones(n, n), diagonal=1).bool()
            scores = scores.masked_fill(future, float("-inf"))
            outs.append(self.drop(torch.softmax(scores, dim=-1)) @ to_v(x))
        return self.combine(torch.cat(outs, dim=-1))
"""
)

ENCODER = (
    HEAD
    + """
class MultiHeadAttention(nn.Module):
    def __init__(self, d_model, n_head):
        super().__init__()
        self.n_head = n_head
        self.w_q = nn.Linear(d_model, d_model)
        self.w_k = nn.Linear(d_model, d_model)
        self.w_v = nn.Linear(d_model, d_model)
        self.w_concat = nn.Linear(d_model, d_model)

    def forward(self, q, k, v, mask=None):
        q, k, v = self.w_q(q), self.w_k(k), self.w_v(v)
        q, k, v = self.split(q), self.split(k), self.split(v)
        score = (q @ k.transpose(2, 3)) / math.sqrt(q.size(-1))
        if mask is not None:
            score = score.masked_fill(mask == 0, -10000)
        out = torch.softmax(score, dim=-1) @ v
        batch, head, length, d = out.size()
        return self.w_concat(out.transpose(1, 2).contiguous().view(batch, length, head * d))

    def split(self, tensor):
        batch, length, d_model = tensor.size()
        return tensor.view(batch, length, self.n_head, d_model // self.n_head).transpose(1, 2)
"""
)

INPUT_AND_EXIT = (
    HEAD
    + """import argparse
import sys

parser = argparse.ArgumentParser()
parser.add_argument("--steps", type=int, required=True)
args = parser.parse_args()
name = input("name: ")


class SelfAttn(nn.Module):
    def __init__(self, embedding_dim, n_heads, attn_dropout):
        super().__init__()
        self.n_heads = n_heads
        self.q_linear = nn.Linear(embedding_dim, embedding_dim)
        self.k_linear = nn.Linear(embedding_dim, embedding_dim)
        self.v_linear = nn.Linear(embedding_dim, embedding_dim)
        self.out = nn.Linear(embedding_dim, embedding_dim)
        self.attn_dropout = nn.Dropout(attn_dropout)

    def forward(self, x):
        bs, n, dim = x.shape
        q = self.q_linear(x).view(bs, n, self.n_heads, -1).transpose(1, 2)
        k = self.k_linear(x).view(bs, n, self.n_heads, -1).transpose(1, 2)
        v = self.v_linear(x).view(bs, n, self.n_heads, -1).transpose(1, 2)
        scores = torch.matmul(q, k.transpose(-2, -1)) / math.sqrt(dim // self.n_heads)
        scores = scores.masked_fill(torch.ones(n, n).triu(1) == 1, float("-inf"))
        scores = self.attn_dropout(F.softmax(scores, dim=-1))
        out = torch.matmul(scores, v).transpose(1, 2).contiguous().view(bs, n, dim)
        return self.out(out)


sys.exit(0)
"""
)

ANNOTATED_CONFIG = (
    HEAD
    + """from dataclasses import dataclass


@dataclass
class ModelArgs:
    dim: int = 512
    n_heads: int = 8
    max_seq_len: int = 128
    dropout: float = 0.0

    @property
    def head_dim(self):
        return self.dim // self.n_heads


class Attention(nn.Module):
    def __init__(self, args: ModelArgs):
        super().__init__()
        self.args = args
        self.wq = nn.Linear(args.dim, args.n_heads * args.head_dim, bias=False)
        self.wk = nn.Linear(args.dim, args.n_heads * args.head_dim, bias=False)
        self.wv = nn.Linear(args.dim, args.n_heads * args.head_dim, bias=False)
        self.wo = nn.Linear(args.n_heads * args.head_dim, args.dim, bias=False)
        mask = torch.full((args.max_seq_len, args.max_seq_len), float("-inf"))
        self.register_buffer("mask", torch.triu(mask, diagonal=1), persistent=False)

    def forward(self, x):
        bsz, seqlen, _ = x.shape
        shape = (bsz, seqlen, self.args.n_heads, self.args.head_dim)
        xq, xk, xv = self.wq(x).view(shape), self.wk(x).view(shape), self.wv(x).view(shape)
        xq, xk, xv = xq.transpose(1, 2), xk.transpose(1, 2), xv.transpose(1, 2)
        scores = torch.matmul(xq, xk.transpose(2, 3)) / math.sqrt(self.args.head_dim)
        scores = scores + self.mask[:seqlen, :seqlen]
        scores = F.softmax(scores.float(), dim=-1).type_as(xq)
        output = torch.matmul(scores, xv)
        output = output.transpose(1, 2).contiguous().view(bsz, seqlen, -1)
        return self.wo(output)
"""
)

SUBCLASS = (
    HEAD
    + """
class CausalMultiheadAttention(nn.MultiheadAttention):
    def forward(self, x):
        n = x.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(n, device=x.device, dtype=x.dtype)
        return super().forward(x, x, x, attn_mask=mask, need_weights=False, is_causal=True)[0]
"""
)

LAZY = (
    HEAD
    + """
def masked_softmax(X, valid_lens):
    shape = X.shape
    if valid_lens.dim() == 1:
        valid_lens = torch.repeat_interleave(valid_lens, shape[1])
    else:
        valid_lens = valid_lens.reshape(-1)
    X = X.reshape(-1, shape[-1])
    keep = torch.arange(X.size(1), device=X.device)[None, :] < valid_lens[:, None]
    X = X.masked_fill(~keep, -1e6)
    return F.softmax(X.reshape(shape), dim=-1)


class MultiHeadAttention(nn.Module):
    def __init__(self, num_hiddens, num_heads, dropout, bias=False, **kwargs):
        super().__init__()
        self.num_heads = num_heads
        self.dropout = nn.Dropout(dropout)
        self.W_q = nn.LazyLinear(num_hiddens, bias=bias)
        self.W_k = nn.LazyLinear(num_hiddens, bias=bias)
        self.W_v = nn.LazyLinear(num_hiddens, bias=bias)
        self.W_o = nn.LazyLinear(num_hiddens, bias=bias)

    def forward(self, queries, keys, values, valid_lens):
        queries = self.transpose_qkv(self.W_q(queries))
        keys = self.transpose_qkv(self.W_k(keys))
        values = self.transpose_qkv(self.W_v(values))
        if valid_lens is not None:
            valid_lens = torch.repeat_interleave(valid_lens, repeats=self.num_heads, dim=0)
        scores = torch.bmm(queries, keys.transpose(1, 2)) / math.sqrt(queries.shape[-1])
        weights = masked_softmax(scores, valid_lens)
        output = torch.bmm(self.dropout(weights), values)
        return self.W_o(self.transpose_output(output))

    def transpose_qkv(self, X):
        X = X.reshape(X.shape[0], X.shape[1], self.num_heads, -1).permute(0, 2, 1, 3)
        return X.reshape(-1, X.shape[2], X.shape[3])

    def transpose_output(self, X):
        X = X.reshape(-1, self.num_heads, X.shape[1], X.shape[2]).permute(0, 2, 1, 3)
        return X.reshape(X.shape[0], X.shape[1], -1)
"""
)

LEARNED_SCALE = (
    HEAD
    + """
class SelfAttentionLayer(nn.Module):
    def __init__(self, hidden_dim, num_heads=4, head_dim=None):
        super().__init__()
        self.h, self.d = num_heads, head_dim or hidden_dim // num_heads
        self.proj_in = nn.ParameterDict({n: torch.empty(hidden_dim, self.h, self.d) for n in "qkv"})
        self.proj_out = nn.Conv1d(hidden_dim, hidden_dim, kernel_size=1)
        self.scale = nn.Parameter(torch.tensor(float(self.d)) ** -0.5)

    def forward(self, x, padding_mask=None):
        q, k, v = (torch.einsum("bte,ehd->bhtd", x, self.proj_in[n]) for n in "qkv")
        scores = torch.einsum("bhtd,bhsd->bhts", q, k) * self.scale
        n = x.size(1)
        scores = scores + torch.triu(torch.full((n, n), -math.inf, device=x.device), 1)
        out = scores.softmax(-1) @ v
        return self.proj_out(out.permute(0, 1, 3, 2).reshape(x.shape[0], -1, n)).transpose(1, 2)
"""
)

OWN_MASK = (
    HEAD
    + """
def visible(n):
    return torch.tril(torch.ones(n, n, dtype=torch.bool))


class SelfAttention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.ask = nn.Linear(width, width)
        self.offer = nn.Linear(width, width)
        self.give = nn.Linear(width, width)
        self.mix = nn.Linear(width, width)

    def forward(self, q, k, v, mask=None):
        if mask is None:
            mask = visible(q.shape[1])
        q, k, v = self.heads_of(self.ask(q)), self.heads_of(self.offer(k)), self.heads_of(self.give(v))
        logits = torch.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(q.shape[-1])
        logits = logits.masked_fill(mask == 0, -1e9)
        weights = logits.softmax(dim=-1)
        return self.mix(torch.einsum("bhqk,bkhd->bqhd", weights, v).flatten(2))

    def heads_of(self, t):
        return t.unflatten(-1, (self.heads, -1))
"""
)

UNKNOWN_NAMES = (
    HEAD
    + """
class Aufmerksamkeit(nn.Module):
    def __init__(self, breite, koepfe=4):
        super().__init__()
        self.koepfe = koepfe
        self.qkv = nn.Linear(breite, 3 * breite)
        self.aus = nn.Linear(breite, breite)

    def forward(self, x):
        b, t, c = x.shape
        q, k, v = self.qkv(x).view(b, t, 3, self.koepfe, c // self.koepfe).permute(2, 0, 3, 1, 4)
        w = q @ k.transpose(-2, -1) / math.sqrt(q.size(-1))
        w = w + torch.full((t, t), -math.inf).triu(1)
        return self.aus((w.softmax(-1) @ v).transpose(1, 2).reshape(b, t, c))
"""
)

DEFAULT_SIZES = (
    HEAD
    + """
class AttentionLayer(nn.Module):
    def __init__(self, units=96, num_heads=4, rate=0.0):
        super().__init__()
        self.units, self.num_heads = units, num_heads
        self.wq, self.wk, self.wv = (nn.Linear(units, units) for _ in range(3))
        self.wo = nn.Linear(units, units)
        self.dropout = nn.Dropout(rate)

    def forward(self, inputs):
        n, length = inputs.shape[:2]
        size = self.units // self.num_heads
        q, k, v = (
            layer(inputs).reshape(n, length, self.num_heads, size).permute(0, 2, 1, 3)
            for layer in (self.wq, self.wk, self.wv)
        )
        scores = torch.matmul(q, k.mT) * size**-0.5
        hidden = 1 - torch.tril(torch.ones(length, length))
        scores = scores - 1e9 * hidden
        probs = self.dropout(F.softmax(scores, dim=-1))
        joined = torch.matmul(probs, v).permute(0, 2, 1, 3).reshape(n, length, self.units)
        return self.wo(joined)
"""
)

TWO_SIZES = (
    HEAD
    + """
class Attn(nn.Module):
    def __init__(self, nx, n_ctx, config):
        super().__init__()
        self.n_head, self.nx = config.n_head, nx
        self.into = nn.Linear(nx, 3 * nx)
        self.back = nn.Linear(nx, nx)
        self.register_buffer("keep", torch.ones(n_ctx, n_ctx).tril().bool())

    def forward(self, h):
        b, t, _ = h.shape
        q, k, v = (z.view(b, t, self.n_head, -1).transpose(1, 2) for z in self.into(h).split(self.nx, 2))
        s = q @ k.transpose(2, 3) / math.sqrt(v.size(3))
        s = torch.where(self.keep[:t, :t], s, torch.tensor(-1e10, dtype=s.dtype))
        return self.back((torch.softmax(s, 3) @ v).transpose(1, 2).reshape(b, t, self.nx))
"""
)

RIGHT = {
    "llms_from_scratch": BOOK,
    "llms_from_scratch_wrapper": BOOK_WRAPPER,
    "llms_from_scratch_one_head": ONE_HEAD,
    "lecture": LECTURE,
    "mingpt": MINGPT,
    "own_linear_layers": OWN_LINEAR,
    "arena": ARENA,
    "annotated_transformer": ANNOTATED,
    "conv1d": CONV1D,
    "torch_multihead_attention": TORCH_MHA,
    "vision_transformer": VIT,
    "rows_by_head": BY_HEAD,
    "fused_keys_and_values": TO_KV,
    "one_matrix_for_all_heads": SHARED,
    "bare_matrices": BARE,
    "config_is_a_dict": DICT,
    "tokeys_toqueries": UNIFY,
    "kqv": KQV,
    "three_lists": THREE_LISTS,
    "forward_of_q_k_v_mask": ENCODER,
    "input_and_exit": INPUT_AND_EXIT,
    "annotated_config": ANNOTATED_CONFIG,
    "subclass_of_multihead_attention": SUBCLASS,
    "lazy_layers_and_valid_lens": LAZY,
    "learned_scale": LEARNED_SCALE,
    "own_mask_if_none_is_given": OWN_MASK,
    "unknown_names": UNKNOWN_NAMES,
    "default_sizes": DEFAULT_SIZES,
    "size_beside_the_config": TWO_SIZES,
}

WRONG: dict[str, tuple[tuple[int, str, str], ...]] = {
    "own_mask_if_none_is_given": (
        (5, "dtype=torch.bool))", "dtype=torch.bool), -1)"),
        (4, " / math.sqrt(q.shape[-1])", ""),
        (5, "mask == 0", "mask == 1"),
        (6, "softmax(dim=-1)", "softmax(dim=2)"),
    ),
    "unknown_names": (
        (4, "math.sqrt(q.size(-1))", "math.sqrt(c)"),
        (8, ".transpose(1, 2).reshape(b, t, c)", ".reshape(b, t, c)"),
        (5, ".triu(1)", ".triu()"),
    ),
    "default_sizes": (
        (4, " * size**-0.5", ""),
        (5, "- 1e9", "+ 1e9"),
        (6, "F.softmax(scores, dim=-1)", "F.softmax(scores, dim=1)"),
    ),
    "size_beside_the_config": (
        (4, " / math.sqrt(v.size(3))", ""),
        (5, ".tril()", ".triu()"),
    ),
    "llms_from_scratch": (
        (4, "keys.shape[-1] ** 0.5", "self.d_out ** 0.5"),
        (4, "attn_scores / keys.shape[-1] ** 0.5", "attn_scores"),
        (5, "diagonal=1", "diagonal=0"),
        (5, "attn_scores.masked_fill_(mask_bool, -torch.inf)", "pass"),
        (6, "dim=-1)\n        attn_weights = self", "dim=-2)\n        attn_weights = self"),
        (8, "(attn_weights @ values).transpose(1, 2)", "attn_weights @ values"),
        (8, "return self.out_proj(context_vec)", "return context_vec"),
        (2, "keys = keys.view(b, num_tokens, self.num_heads, self.head_dim)",
         "keys = keys.view(b, self.num_heads, num_tokens, self.head_dim).transpose(1, 2)"),
        (1, "queries = self.W_query(x)", "queries = self.W_key(x)"),
        (7, "(attn_weights @ values)", "(attn_weights @ keys)"),
    ),
    "llms_from_scratch_wrapper": (
        (4, "attn_scores / keys.shape[-1] ** 0.5", "attn_scores"),
        (5, "diagonal=1", "diagonal=2"),
        (6, "dim=-1)\n        attn_weights = self", "dim=1)\n        attn_weights = self"),
        (1, "values = self.W_value(x)", "values = self.W_key(x)"),
        (1, "nn.ModuleList(\n            [CausalAttention(d_in, d_out // num_heads, context_length, dropout, qkv_bias) for _ in range(num_heads)]\n        )",
         "[CausalAttention(d_in, d_out // num_heads, context_length, dropout, qkv_bias) for _ in range(num_heads)]"),
    ),
    "lecture": (
        (4, "* k.shape[-1] ** -0.5", "* C ** -0.5"),
        (4, "* k.shape[-1] ** -0.5", ""),
        (5, "wei = wei.masked_fill(self.tril[:T, :T] == 0, float(\"-inf\"))\n", "pass\n"),
        (5, "self.tril[:T, :T] == 0", "self.tril[:T, :T] == 1"),
        (6, "F.softmax(wei, dim=-1)", "F.softmax(wei, dim=1)"),
        (1, "nn.ModuleList([Head(head_size) for _ in range(num_heads)])", "[Head(head_size) for _ in range(num_heads)]"),
        (8, "self.dropout(self.proj(out))", "self.dropout(out)"),
        (1, "q = self.query(x)", "q = self.key(x)"),
    ),
    "mingpt": (
        (4, "1.0 / math.sqrt(k.size(-1))", "1.0 / math.sqrt(C)"),
        (5, "att = att.masked_fill(self.bias[:, :, :T, :T] == 0, float(\"-inf\"))\n", "pass\n"),
        (8, "y.transpose(1, 2).contiguous().view(B, T, C)", "y.contiguous().view(B, T, C)"),
        (2, "v = v.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)", "v = v.view(B, self.n_head, T, C // self.n_head)"),
        (6, "F.softmax(att, dim=-1)", "F.softmax(att, dim=2)"),
    ),
    "own_linear_layers": (
        (4, "/ math.sqrt(q.shape[-1])", "/ q.shape[-1]"),
        (5, "masked_fill(~mask", "masked_fill(mask"),
        (6, "return x / x.sum(dim=dim, keepdim=True)", "return x / x.sum()"),
        (8, "out.transpose(-3, -2).reshape", "out.reshape"),
    ),
    "arena": (
        (4, "attn_scores / self.cfg.d_head**0.5", "attn_scores / self.cfg.d_model**0.5"),
        (5, "diagonal=1", "diagonal=0"),
        (6, "attn_scores_masked.softmax(-1)", "attn_scores_masked.softmax(-2)"),
        (1, "x, self.W_Q) + self.b_Q", "x, self.W_Q) + self.b_K"),
    ),
    "annotated_transformer": (
        (4, "/ math.sqrt(d_k)", ""),
        (5, "scores = scores.masked_fill(mask == 0, -1e9)", "scores = scores * 1.0"),
        (8, "x.transpose(1, 2).contiguous()", "x.contiguous()"),
        (6, "scores.softmax(dim=-1)", "scores.softmax(dim=-2)"),
    ),
    "conv1d": (
        (4, "/ self.head_dim**0.5", "/ self.embed_dim**0.5"),
        (5, "torch.where(self.bias[:n, :n], scores, torch.finfo(scores.dtype).min)", "scores"),
        (6, "scores.softmax(-1)", "scores.softmax(-2)"),
    ),
    "vision_transformer": (
        (4, "q * self.scale @ k", "q @ k"),
        (5, ".triu(1)", ".tril(-1)"),
        (8, "x.transpose(1, 2).reshape(B, N, C)", "x.reshape(B, N, C)"),
    ),
    "rows_by_head": (
        (4, "/ math.sqrt(q.size()[-1])", "* math.sqrt(q.size()[-1])"),
        (8, "values.permute(0, 2, 1, 3).reshape", "values.reshape"),
    ),
    "fused_keys_and_values": (
        (4, "* self.scale", ""),
        (6, "sim.softmax(dim=-1)", "sim.softmax(dim=1)"),
        (5, ".triu(1)", ".triu(0)"),
    ),
    "one_matrix_for_all_heads": (
        (4, "self.head_dim ** (1 / 2), dim=3", "self.embed_size ** (1 / 2), dim=3"),
        (6, "dim=3)", "dim=2)"),
    ),
    "bare_matrices": (
        (4, " / (size // self.n_heads) ** 0.5", ""),
        (5, "~visible", "visible"),
        (8, ".transpose(1, 2).reshape(batch, length, size)", ".reshape(batch, length, size)"),
    ),
    "config_is_a_dict": (
        (5, "is_causal=True", "is_causal=False"),
        (8, "y.transpose(1, 2).reshape(b, t, e)", "y.reshape(b, t, e)"),
    ),
    "tokeys_toqueries": (
        (4, "/ math.sqrt(s)", "/ math.sqrt(e)"),
        (3, "queries = queries.transpose(1, 2).contiguous().view(b * h, t, s)", "queries = queries.contiguous().view(b * h, t, s)"),
        (5, "offset=1", "offset=0"),
        (8, "out.transpose(1, 2).contiguous().view(b, t, s * h)", "out.view(b, t, s * h)"),
    ),
    "kqv": (
        (4, "/ math.sqrt(q.size(-1))", "/ math.sqrt(L)"),
        (5, "self.tri[:L, :L] == 0", "self.tri[:L, :L] != 0"),
        (7, "(att @ v).permute", "(att.transpose(2, 3) @ v).permute"),
    ),
    "three_lists": (
        (4, "/ self.scale", "* self.scale"),
        (5, "diagonal=1", "diagonal=0"),
        (6, "torch.softmax(scores, dim=-1)", "torch.softmax(scores, dim=0)"),
        (8, "self.combine(torch.cat(outs, dim=-1))", "self.combine(sum(outs).repeat(1, 1, len(outs)))"),
    ),
    "forward_of_q_k_v_mask": (
        (4, "/ math.sqrt(q.size(-1))", "/ q.size(-1)"),
        (6, "torch.softmax(score, dim=-1)", "torch.softmax(score, dim=1)"),
        (5, "if mask is not None:", "if mask is None:"),
    ),
    "input_and_exit": (
        (4, "/ math.sqrt(dim // self.n_heads)", "/ math.sqrt(dim)"),
        (5, ".triu(1) == 1", ".triu(1) == 0"),
        (1, "k = self.k_linear(x)", "k = self.q_linear(x)"),
    ),
    "subclass_of_multihead_attention": (
        (5, "attn_mask=mask, need_weights=False, is_causal=True", "need_weights=False"),
    ),
    "lazy_layers_and_valid_lens": (
        (4, " / math.sqrt(queries.shape[-1])", ""),
        (6, "F.softmax(X.reshape(shape), dim=-1)", "F.softmax(X.reshape(shape), dim=1)"),
        (1, "values = self.transpose_qkv(self.W_v(values))", "values = self.transpose_qkv(self.W_k(values))"),
    ),
    "learned_scale": (
        (5, "-math.inf, device=x.device), 1)", "-math.inf, device=x.device), 2)"),
        (8, "out.permute(0, 1, 3, 2).reshape", "out.reshape"),
        (6, "scores.softmax(-1)", "scores.softmax(-2)"),
    ),
    "annotated_config": (
        (4, "math.sqrt(self.args.head_dim)", "self.args.head_dim"),
        (5, "diagonal=1", "diagonal=-1"),
        (8, "return self.wo(output)", "return output"),
    ),
}  # fmt: skip
