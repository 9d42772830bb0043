"""Right and wrong attention with a past (earlier keys and values), in the styles of many programs.

No file is a copy: each is written for this project. The comment above a file names its style, or
what is special in it.
"""

from __future__ import annotations

HEAD = """import math

import torch
import torch.nn as nn
import torch.nn.functional as F


"""
# In the style of minGPT, with a past: one layer for q, k and v, and a mask in a buffer.
MINGPT = (
    HEAD
    + """class CausalSelfAttention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd)
        tril = torch.tril(torch.ones(config.block_size, config.block_size))
        self.register_buffer("bias", tril.view(1, 1, config.block_size, config.block_size))
        self.n_head = config.n_head
        self.n_embd = config.n_embd

    def forward(self, x, layer_past=None):
        B, T, C = x.size()
        q, k, v = self.c_attn(x).split(self.n_embd, dim=2)
        k = k.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)
        q = q.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)
        v = v.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)
        if layer_past is not None:
            past_k, past_v = layer_past
            k = torch.cat((past_k, k), dim=2)
            v = torch.cat((past_v, v), dim=2)
        present = (k, v)
        S = k.size(2)
        att = (q @ k.transpose(-2, -1)) * (1.0 / math.sqrt(k.size(-1)))
        att = att.masked_fill(self.bias[:, :, S - T : S, :S] == 0, float("-inf"))
        att = F.softmax(att, dim=-1)
        y = att @ v
        y = y.transpose(1, 2).contiguous().view(B, T, C)
        y = self.c_proj(y)
        return y, present
"""
)
# In the style of Hugging Face's GPT-2: helper methods, use_cache, and several outputs.
HUGGING_FACE = (
    HEAD
    + """class GPT2Attention(nn.Module):
    def __init__(self, config, layer_idx=None):
        super().__init__()
        self.embed_dim = config.hidden_size
        self.num_heads = config.num_attention_heads
        self.head_dim = self.embed_dim // self.num_heads
        limit = config.max_position_embeddings
        self.register_buffer(
            "causal_mask", torch.ones(limit, limit, dtype=torch.bool).tril(), persistent=False
        )
        self.c_attn = nn.Linear(self.embed_dim, 3 * self.embed_dim)
        self.c_proj = nn.Linear(self.embed_dim, self.embed_dim)
        self.attn_dropout = nn.Dropout(config.attn_pdrop)

    def _attn(self, query, key, value):
        scores = torch.matmul(query, key.transpose(-1, -2))
        scores = scores / (value.size(-1) ** 0.5)
        query_length, key_length = query.size(-2), key.size(-2)
        allowed = self.causal_mask[key_length - query_length : key_length, :key_length]
        lowest = torch.finfo(scores.dtype).min
        scores = torch.where(allowed, scores, torch.full([], lowest, dtype=scores.dtype))
        weights = nn.functional.softmax(scores, dim=-1)
        weights = self.attn_dropout(weights)
        return torch.matmul(weights, value), weights

    def _split_heads(self, tensor):
        shape = tensor.size()[:-1] + (self.num_heads, self.head_dim)
        return tensor.view(shape).permute(0, 2, 1, 3)

    def _merge_heads(self, tensor):
        tensor = tensor.permute(0, 2, 1, 3).contiguous()
        return tensor.view(tensor.size()[:-2] + (self.num_heads * self.head_dim,))

    def forward(self, hidden_states, layer_past=None, use_cache=False, output_attentions=False):
        query, key, value = self.c_attn(hidden_states).split(self.embed_dim, dim=2)
        query = self._split_heads(query)
        key = self._split_heads(key)
        value = self._split_heads(value)
        if layer_past is not None:
            past_key, past_value = layer_past
            key = torch.cat((past_key, key), dim=-2)
            value = torch.cat((past_value, value), dim=-2)
        present = (key, value) if use_cache is True else None
        attn_output, attn_weights = self._attn(query, key, value)
        attn_output = self._merge_heads(attn_output)
        attn_output = self.c_proj(attn_output)
        outputs = (attn_output, present)
        if output_attentions:
            outputs += (attn_weights,)
        return outputs
"""
)
# In the style of a book's chapter on key/value caches: the module keeps its keys and values in
# buffers, and forward returns no past.
CHAPTER = (
    HEAD
    + """class MultiHeadAttention(nn.Module):
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
        self.register_buffer(
            "mask", torch.triu(torch.ones(context_length, context_length), diagonal=1),
            persistent=False,
        )
        self.register_buffer("cache_k", None, persistent=False)
        self.register_buffer("cache_v", None, persistent=False)
        self.ptr_current_pos = 0

    def forward(self, x, use_cache=False):
        b, num_tokens, _ = x.shape
        keys_new = self.W_key(x).view(b, num_tokens, self.num_heads, self.head_dim)
        values_new = self.W_value(x).view(b, num_tokens, self.num_heads, self.head_dim)
        queries = self.W_query(x).view(b, num_tokens, self.num_heads, self.head_dim)

        if use_cache:
            if self.cache_k is None:
                self.cache_k, self.cache_v = keys_new, values_new
            else:
                self.cache_k = torch.cat([self.cache_k, keys_new], dim=1)
                self.cache_v = torch.cat([self.cache_v, values_new], dim=1)
            keys, values = self.cache_k, self.cache_v
        else:
            keys, values = keys_new, values_new

        keys = keys.transpose(1, 2)
        queries = queries.transpose(1, 2)
        values = values.transpose(1, 2)
        attn_scores = queries @ keys.transpose(2, 3)

        num_tokens_Q = queries.shape[-2]
        num_tokens_K = keys.shape[-2]
        if use_cache:
            mask_bool = self.mask.bool()[
                self.ptr_current_pos : self.ptr_current_pos + num_tokens_Q, :num_tokens_K
            ]
            self.ptr_current_pos += num_tokens_Q
        else:
            mask_bool = self.mask.bool()[:num_tokens_Q, :num_tokens_K]
        attn_scores.masked_fill_(mask_bool, -torch.inf)

        attn_weights = torch.softmax(attn_scores / keys.shape[-1] ** 0.5, dim=-1)
        attn_weights = self.dropout(attn_weights)
        context_vec = (attn_weights @ values).transpose(1, 2)
        context_vec = context_vec.contiguous().view(b, num_tokens, self.d_out)
        return self.out_proj(context_vec)

    def reset_cache(self):
        self.cache_k, self.cache_v = None, None
        self.ptr_current_pos = 0
"""
)
# In the style of lucidrains: the past is one tensor of stacked keys and values, and einsum computes
# the products.
STACKED = (
    HEAD
    + """def exists(val):
    return val is not None


class Attention(nn.Module):
    def __init__(self, dim, heads=8, dim_head=64):
        super().__init__()
        self.heads = heads
        self.scale = dim_head ** -0.5
        inner = heads * dim_head
        self.to_q = nn.Linear(dim, inner, bias=False)
        self.to_kv = nn.Linear(dim, inner * 2, bias=False)
        self.to_out = nn.Linear(inner, dim, bias=False)

    def split(self, t):
        b, n, _ = t.shape
        return t.reshape(b, n, self.heads, -1).transpose(1, 2)

    def forward(self, x, cache=None, return_cache=False):
        q = self.to_q(x)
        k, v = self.to_kv(x).chunk(2, dim=-1)
        q, k, v = map(self.split, (q, k, v))

        if exists(cache):
            ck, cv = cache
            k = torch.cat((ck, k), dim=-2)
            v = torch.cat((cv, v), dim=-2)

        sim = torch.einsum("b h i d, b h j d -> b h i j", q, k) * self.scale
        i, j = sim.shape[-2:]
        mask = torch.ones((i, j), dtype=torch.bool, device=x.device).triu(j - i + 1)
        sim = sim.masked_fill(mask, -torch.finfo(sim.dtype).max)
        attn = sim.softmax(dim=-1)
        out = torch.einsum("b h i j, b h j d -> b h i d", attn, v)
        b, h, n, d = out.shape
        out = self.to_out(out.transpose(1, 2).reshape(b, n, h * d))

        if not return_cache:
            return out
        return out, torch.stack((k, v))
"""
)
# In the style of nanoGPT: scaled_dot_product_attention, with the past as a pair (k, v).
NANO = (
    HEAD
    + """class CausalSelfAttention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd, bias=config.bias)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.n_head, self.n_embd = config.n_head, config.n_embd
        self.dropout = config.dropout

    def forward(self, x, kv_cache=None):
        B, T, C = x.shape
        q, k, v = self.c_attn(x).split(self.n_embd, dim=2)
        q = q.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)
        k = k.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)
        v = v.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)
        if kv_cache is not None:
            k = torch.cat([kv_cache[0], k], dim=2)
            v = torch.cat([kv_cache[1], v], dim=2)
        new_cache = (k, v)
        S = k.shape[2]
        visible = torch.ones(T, S, dtype=torch.bool, device=x.device).tril(S - T)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=visible)
        y = y.transpose(1, 2).contiguous().view(B, T, C)
        return self.c_proj(y), new_cache
"""
)
# In the style of a notebook: forward takes the past as two arguments and returns three results. In
# the stored tensors, the heads are merged.
MERGED = (
    HEAD
    + """class SelfAttention(nn.Module):
    def __init__(self, embed_dim, num_heads):
        super().__init__()
        self.h = num_heads
        self.wq = nn.Linear(embed_dim, embed_dim)
        self.wk = nn.Linear(embed_dim, embed_dim)
        self.wv = nn.Linear(embed_dim, embed_dim)
        self.wo = nn.Linear(embed_dim, embed_dim)

    def forward(self, x, past_k=None, past_v=None):
        q, k, v = self.wq(x), self.wk(x), self.wv(x)
        start = 0
        if past_k is not None:
            start = past_k.shape[1]
            k = torch.cat((past_k, k), dim=1)
            v = torch.cat((past_v, v), dim=1)
        n, t, e = q.shape
        s = k.shape[1]
        heads = []
        for i in range(self.h):
            part = slice(i * e // self.h, (i + 1) * e // self.h)
            w = q[..., part] @ k[..., part].transpose(1, 2) / math.sqrt(e // self.h)
            rows = torch.arange(start, start + t).unsqueeze(1)
            w = w.masked_fill(torch.arange(s) > rows, float("-inf"))
            heads.append(w.softmax(-1) @ v[..., part])
        return self.wo(torch.cat(heads, dim=-1)), k, v
"""
)
# In the style of Llama: rotary positions, which start at the number of tokens in the past.
ROTARY = (
    HEAD
    + """def rotate_half(x):
    a, b = x.chunk(2, dim=-1)
    return torch.cat((-b, a), dim=-1)


def rope(x, positions):
    d = x.shape[-1]
    inv_freq = 10000.0 ** (-torch.arange(0, d, 2).to(x) / d)
    angles = positions[:, None] * inv_freq
    angles = torch.cat((angles, angles), dim=-1)
    return x * angles.cos() + rotate_half(x) * angles.sin()


class LlamaAttention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.num_heads = config.num_heads
        self.head_dim = config.hidden_size // config.num_heads
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(self, hidden_states, past_key_value=None, use_cache=True):
        bsz, q_len, _ = hidden_states.size()
        shape = (bsz, q_len, self.num_heads, self.head_dim)
        q = self.q_proj(hidden_states).view(shape).transpose(1, 2)
        k = self.k_proj(hidden_states).view(shape).transpose(1, 2)
        v = self.v_proj(hidden_states).view(shape).transpose(1, 2)
        past_len = 0 if past_key_value is None else past_key_value[0].shape[-2]
        positions = torch.arange(past_len, past_len + q_len)
        q, k = rope(q, positions), rope(k, positions)
        if past_key_value is not None:
            k = torch.cat([past_key_value[0], k], dim=2)
            v = torch.cat([past_key_value[1], v], dim=2)
        past_key_value = (k, v) if use_cache else None
        kv_len = k.shape[2]
        scores = q @ k.transpose(2, 3) / math.sqrt(self.head_dim)
        later = torch.arange(kv_len)[None, :] > positions[:, None]
        scores = scores.masked_fill(later, float("-inf"))
        out = F.softmax(scores, dim=-1) @ v
        out = out.transpose(1, 2).reshape(bsz, q_len, -1)
        return self.o_proj(out), past_key_value
"""
)
# The past is a dict, and forward writes the keys and values into it.
DICT = (
    HEAD
    + """class CausalSelfAttention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.n_head = config.n_head
        self.query = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.key = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.value = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)

    def forward(self, x, cache=None):
        B, T, C = x.shape
        q, k, v = (layer(x).view(B, T, self.n_head, -1).transpose(1, 2)
                   for layer in (self.query, self.key, self.value))
        if cache is not None:
            if "k" in cache:
                k = torch.cat((cache["k"], k), dim=2)
                v = torch.cat((cache["v"], v), dim=2)
            cache["k"], cache["v"] = k, v
        S = k.shape[2]
        scores = q @ k.transpose(2, 3) / math.sqrt(C // self.n_head)
        hidden = torch.ones(T, S, dtype=torch.bool).triu(diagonal=S - T + 1)
        weights = scores.masked_fill(hidden, float("-inf")).softmax(dim=-1)
        return self.c_proj((weights @ v).transpose(1, 2).reshape(B, T, C))
"""
)
# The stored keys are transposed, with the shape (B, H, D, S), as in the first GPT-2 for PyTorch.
TURNED = (
    MINGPT.replace(
        "        k = k.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)\n",
        "        k = k.view(B, T, self.n_head, C // self.n_head).permute(0, 2, 3, 1)\n",
    )
    .replace("torch.cat((past_k, k), dim=2)", "torch.cat((past_k, k), dim=-1)")
    .replace("S = k.size(2)", "S = k.size(-1)")
    .replace("(q @ k.transpose(-2, -1)) * (1.0 / math.sqrt(k.size(-1)))",
             "(q @ k) * (1.0 / math.sqrt(v.size(-1)))")
)  # fmt: skip
# In the stored tensors, the time dimension comes before the heads.
TIME_FIRST = (
    HEAD
    + """class Attention(nn.Module):
    def __init__(self, args):
        super().__init__()
        self.n_heads = args.n_heads
        self.head_dim = args.dim // args.n_heads
        self.wq = nn.Linear(args.dim, args.dim, bias=False)
        self.wk = nn.Linear(args.dim, args.dim, bias=False)
        self.wv = nn.Linear(args.dim, args.dim, bias=False)
        self.wo = nn.Linear(args.dim, args.dim, bias=False)
        self.cache_k = torch.zeros(8, args.max_seq_len, args.n_heads, self.head_dim)
        self.cache_v = torch.zeros(8, args.max_seq_len, args.n_heads, self.head_dim)

    def forward(self, x, start_pos):
        bsz, seqlen, _ = x.shape
        xq = self.wq(x).view(bsz, seqlen, self.n_heads, self.head_dim)
        xk = self.wk(x).view(bsz, seqlen, self.n_heads, self.head_dim)
        xv = self.wv(x).view(bsz, seqlen, self.n_heads, self.head_dim)
        self.cache_k = self.cache_k.to(xq)
        self.cache_v = self.cache_v.to(xq)
        self.cache_k[:bsz, start_pos : start_pos + seqlen] = xk
        self.cache_v[:bsz, start_pos : start_pos + seqlen] = xv
        keys = self.cache_k[:bsz, : start_pos + seqlen].transpose(1, 2)
        values = self.cache_v[:bsz, : start_pos + seqlen].transpose(1, 2)
        xq = xq.transpose(1, 2)
        scores = torch.matmul(xq, keys.transpose(2, 3)) / math.sqrt(self.head_dim)
        if seqlen > 1:
            mask = torch.full((seqlen, seqlen), float("-inf"))
            mask = torch.triu(mask, diagonal=1)
            mask = torch.hstack([torch.zeros((seqlen, start_pos)), mask])
            scores = scores + mask
        scores = F.softmax(scores.float(), dim=-1).type_as(xq)
        output = torch.matmul(scores, values)
        output = output.transpose(1, 2).contiguous().view(bsz, seqlen, -1)
        return self.wo(output)
"""
)
# The past is a named tuple.
NAMED = NANO.replace(
    "class CausalSelfAttention",
    "from typing import NamedTuple\n\n\nclass KVCache(NamedTuple):\n    k: torch.Tensor\n"
    "    v: torch.Tensor\n\n\nclass CausalSelfAttention",
).replace("kv_cache[0]", "kv_cache.k").replace("kv_cache[1]", "kv_cache.v").replace(
    "new_cache = (k, v)", "new_cache = KVCache(k=k, v=v)"
)  # fmt: skip
# Without use_cache, forward returns the output alone, and no tuple.
ASKED = HUGGING_FACE.replace(
    "        outputs = (attn_output, present)\n",
    "        if not use_cache:\n            return attn_output\n"
    "        outputs = (attn_output, present)\n",
)
# The past that forward returns has only the newest block_size tokens. The results equal those of
# MINGPT, because a text has at most block_size tokens.
CROPPED = MINGPT.replace(
    "        present = (k, v)\n",
    "        W = self.bias.shape[-1]\n        present = (k[:, :, -W:], v[:, :, -W:])\n",
)
# The module appends the keys and the values of each call to two lists.
PIECES = CHAPTER.replace(
    '        self.register_buffer("cache_k", None, persistent=False)\n'
    '        self.register_buffer("cache_v", None, persistent=False)\n',
    "        self.k_cache, self.v_cache = [], []\n",
).replace(
    """            if self.cache_k is None:
                self.cache_k, self.cache_v = keys_new, values_new
            else:
                self.cache_k = torch.cat([self.cache_k, keys_new], dim=1)
                self.cache_v = torch.cat([self.cache_v, values_new], dim=1)
            keys, values = self.cache_k, self.cache_v
""",
    """            self.k_cache.append(keys_new)
            self.v_cache.append(values_new)
            keys, values = torch.cat(self.k_cache, dim=1), torch.cat(self.v_cache, dim=1)
""",
).replace(
    "        self.cache_k, self.cache_v = None, None\n",
    "        self.k_cache, self.v_cache = [], []\n",
)  # fmt: skip

RIGHT = {
    "mingpt": MINGPT,
    "hugging face": HUGGING_FACE,
    "chapter": CHAPTER,
    "stacked": STACKED,
    "nano": NANO,
    "merged": MERGED,
    "rotary": ROTARY,
    "dict": DICT,
    "turned": TURNED,
    "time first": TIME_FIRST,
    "named tuple": NAMED,
    "asked": ASKED,
    "cropped": CROPPED,
    "pieces": PIECES,
}

# The mistakes. An entry says in words what is wrong, and holds the number of the wrong step, the
# name of a right file in RIGHT, and then pairs: a text of this right file, and the text that
# replaces it.
WRONG: list[tuple[str, ...]] = [
    # step 1: which keys and values are stored
    ("new before old", "1", "mingpt", "(past_k, k)", "(k, past_k)", "(past_v, v)", "(v, past_v)"),
    ("keys new first", "1", "nano", "[kv_cache[0], k]", "[k, kv_cache[0]]"),
    ("along the heads", "1", "mingpt", "(past_k, k), dim=2", "(past_k, k), dim=1",
     "(past_v, v), dim=2", "(past_v, v), dim=1"),
    ("along the channels", "1", "hugging face", "(past_key, key), dim=-2",
     "(past_key, key), dim=-1",
     "(past_value, value), dim=-2", "(past_value, value), dim=-1"),
    ("along the batch", "1", "nano", "[kv_cache[0], k], dim=2", "[kv_cache[0], k]",
     "[kv_cache[1], v], dim=2", "[kv_cache[1], v]"),
    ("values along the channels", "1", "stacked", "(cv, v), dim=-2", "(cv, v), dim=-1"),
    ("merged along the channels", "1", "merged", "(past_k, k), dim=1", "(past_k, k), dim=-1",
     "(past_v, v), dim=1", "(past_v, v), dim=-1"),
    ("turned along the channels", "1", "turned", "(past_k, k), dim=-1", "(past_k, k), dim=2"),
    ("only keys joined", "1", "mingpt", "            v = torch.cat((past_v, v), dim=2)\n", ""),
    ("only values joined", "1", "nano", "            k = torch.cat([kv_cache[0], k], dim=2)\n", ""),
    ("the past is ignored", "1", "mingpt",
     "            k = torch.cat((past_k, k), dim=2)\n"
     "            v = torch.cat((past_v, v), dim=2)\n",
     "            pass\n"),
    ("old keys before values", "1", "hugging face", "(past_value, value)", "(past_key, value)"),
    ("old values before keys", "1", "merged", "(past_k, k)", "(past_v, k)"),
    ("only the last new token", "1", "nano", "[kv_cache[0], k]", "[kv_cache[0], k[:, :, -1:]]",
     "[kv_cache[1], v]", "[kv_cache[1], v[:, :, -1:]]"),
    ("queries returned", "1", "mingpt", "present = (k, v)", "present = (q, v)"),
    ("queries for values", "1", "nano", "new_cache = (k, v)", "new_cache = (k, q)"),
    ("keys twice in the result", "1", "mingpt", "present = (k, v)", "present = (k, k)"),
    ("half precision", "1", "mingpt", "present = (k, v)", "present = (k.half(), v.half())"),
    ("written into the past", "1", "mingpt",
     "            past_k, past_v = layer_past\n",
     "            past_k, past_v = layer_past\n            past_k.mul_(0.5)\n"
     "            past_k.mul_(2.0)\n"
     "            past_k[:, :, 0] = past_k[:, :, 0] + k[:, :, 0] * 0\n"
     "            old = past_k.clone()\n            past_k.add_(1.0)\n            past_k = old\n"),
    ("a list that grows", "1", "nano",
     "            k = torch.cat([kv_cache[0], k], dim=2)\n"
     "            v = torch.cat([kv_cache[1], v], dim=2)\n        new_cache = (k, v)\n",
     "            kv_cache[0] = torch.cat([kv_cache[0], k], dim=2)\n"
     "            kv_cache[1] = torch.cat([kv_cache[1], v], dim=2)\n            k, v = kv_cache\n"
     "        new_cache = kv_cache if kv_cache is not None else [k, v]\n"),
    ("state: new before old", "1", "chapter", "[self.cache_k, keys_new]",
     "[keys_new, self.cache_k]",
     "[self.cache_v, values_new]", "[values_new, self.cache_v]"),
    ("state: along the heads", "1", "chapter", "[self.cache_k, keys_new], dim=1",
     "[self.cache_k, keys_new], dim=2", "[self.cache_v, values_new], dim=1",
     "[self.cache_v, values_new], dim=2"),
    ("state: overwritten", "1", "chapter",
     "self.cache_k = torch.cat([self.cache_k, keys_new], dim=1)",
     "self.cache_k = keys_new", "self.cache_v = torch.cat([self.cache_v, values_new], dim=1)",
     "self.cache_v = values_new"),
    ("state: only keys", "1", "chapter",
     "self.cache_v = torch.cat([self.cache_v, values_new], dim=1)",
     "self.cache_v = values_new"),
    ("dict: only keys stored", "1", "dict", 'cache["k"], cache["v"] = k, v',
     'cache["k"] = k\n            cache.setdefault("v", v)'),
    # step 2: which keys and values forward uses, and which ones it returns
    ("new ones returned", "2", "mingpt",
     "        if layer_past is not None:\n",
     "        present = (k, v)\n        if layer_past is not None:\n",
     "        present = (k, v)\n        S = k", "        S = k"),
    ("new ones returned, stacked", "2", "stacked", "        if exists(cache):\n",
     "        new = torch.stack((k, v))\n        if exists(cache):\n",
     "return out, torch.stack((k, v))", "return out, new"),
    ("the old ones returned", "2", "nano", "new_cache = (k, v)",
     "new_cache = (k, v) if kv_cache is None else kv_cache"),
    ("values and keys returned", "2", "mingpt", "present = (k, v)", "present = (v, k)"),
    ("values and keys taken", "2", "mingpt", "past_k, past_v = layer_past",
     "past_v, past_k = layer_past"),
    ("nothing returned", "2", "mingpt", "return y, present", "return y"),
    ("None returned", "2", "hugging face", "if use_cache is True else None", "if False else None"),
    ("nothing returned after a past", "2", "nano", "new_cache = (k, v)",
     "new_cache = (k, v) if kv_cache is None else None"),
    ("result of cat not used", "2", "mingpt",
     "            k = torch.cat((past_k, k), dim=2)\n"
     "            v = torch.cat((past_v, v), dim=2)\n",
     "            all_k = torch.cat((past_k, k), dim=2)\n"
     "            all_v = torch.cat((past_v, v), dim=2)\n"
     "        else:\n            all_k, all_v = k, v\n", "present = (k, v)",
     "present = (all_k, all_v)"),
    ("values of the new ones used", "2", "nano",
     "            v = torch.cat([kv_cache[1], v], dim=2)\n        new_cache = (k, v)\n",
     "            new_cache = (k, torch.cat([kv_cache[1], v], dim=2))\n"
     "        else:\n            new_cache = (k, v)\n"),
    ("joined twice", "2", "mingpt", "(past_k, k), dim=2", "(past_k, k, k), dim=2",
     "(past_v, v), dim=2", "(past_v, v, v), dim=2"),
    # step 3: the positions of the tokens
    ("rotary from 0", "3", "rotary", "torch.arange(past_len, past_len + q_len)",
     "torch.arange(q_len)", "> positions[:, None]", "> positions[:, None] + past_len"),
    ("rotary keys from 0", "3", "rotary", "rope(q, positions), rope(k, positions)",
     "rope(q, positions), rope(k, torch.arange(q_len))"),
    ("rotary queries from 0", "3", "rotary", "rope(q, positions), rope(k, positions)",
     "rope(q, torch.arange(q_len)), rope(k, positions)"),
    # step 4: which tokens stay in the past, and what a reset removes
    ("drops too early", "4", "cropped", "W = self.bias.shape[-1]", "W = self.bias.shape[-1] - 4"),
    ("reset forgets the values only", "4", "chapter",
     "        self.cache_k, self.cache_v = None, None\n        self.ptr_current_pos = 0\n",
     "        self.cache_v = None\n        self.ptr_current_pos = 0\n"),
    ("reset keeps the position", "4", "chapter",
     "None, None\n        self.ptr_current_pos = 0\n", "None, None\n"),
    ("no reset", "4", "chapter",
     "\n    def reset_cache(self):\n        self.cache_k, self.cache_v = None, None\n"
     "        self.ptr_current_pos = 0\n", ""),
    # step 5: the causal mask
    ("mask from the corner", "5", "mingpt", "[:, :, S - T : S, :S]", "[:, :, :T, :S]"),
    ("mask of T by T", "5", "mingpt", "[:, :, S - T : S, :S]", "[:, :, :T, :T]"),
    ("mask of S by S", "5", "nano",
     "torch.ones(T, S, dtype=torch.bool, device=x.device).tril(S - T)",
     "torch.ones(S, S, dtype=torch.bool, device=x.device).tril()"),
    ("is_causal", "5", "nano", "attn_mask=visible", "is_causal=True"),
    ("no mask with a past", "5", "nano", "attn_mask=visible",
     "attn_mask=visible if kv_cache is None else None"),
    ("one too far", "5", "nano", ".tril(S - T)", ".tril(S - T + 1)"),
    ("not itself", "5", "stacked", "triu(j - i + 1)", "triu(j - i)"),
    ("corner by indices", "5", "merged", "torch.arange(start, start + t)", "torch.arange(t)"),
    ("inverted", "5", "stacked", "triu(j - i + 1)", "tril(j - i)"),
    ("mask of 0", "5", "mingpt", 'float("-inf")', "0.0"),
    ("hugging face corner", "5", "hugging face",
     "[key_length - query_length : key_length, :key_length]", "[:query_length, :key_length]"),
    ("scale by the tokens", "5", "mingpt", "1.0 / math.sqrt(k.size(-1))",
     "1.0 / math.sqrt(k.size(-2))"),
    ("no scale", "5", "stacked", "k) * self.scale", "k)"),
    ("state: mask without the past", "5", "chapter",
     "self.ptr_current_pos : self.ptr_current_pos + num_tokens_Q", ":num_tokens_Q"),
    ("state: position not moved", "5", "chapter",
     "            self.ptr_current_pos += num_tokens_Q\n", ""),
    ("rotary with a corner mask", "5", "rotary", "> positions[:, None]",
     "> torch.arange(q_len)[:, None]"),
    ("start_pos without zeros", "5", "time first",
     "            mask = torch.hstack([torch.zeros((seqlen, start_pos)), mask])\n", ""),
    # step 6: everything after the mask, and other faults
    ("softmax over the queries", "6", "mingpt", "F.softmax(att, dim=-1)", "F.softmax(att, dim=-2)"),
    ("heads not put back", "6", "nano", "y.transpose(1, 2).contiguous().view(B, T, C)",
     "y.contiguous().view(B, T, C)"),
    ("not projected", "6", "mingpt", "        y = self.c_proj(y)\n", ""),
    ("kept in the module", "6", "mingpt", "        present = (k, v)\n",
     "        self.last = (k, v)\n        present = self.last\n",
     "        if layer_past is not None:\n",
     "        if layer_past is not None:\n            layer_past = self.last\n"),
]  # fmt: skip


def wrong_text(entry: tuple[str, ...]) -> str:
    """The text of a wrong file: a right file after the replacements in `entry` of WRONG."""
    text = RIGHT[entry[2]]
    for old, new in zip(entry[3::2], entry[4::2], strict=True):
        assert old in text, (entry[0], old)
        text = text.replace(old, new)
    return text
