"""Right and wrong layer norms, MLPs, blocks, tokenizers and training files in unusual styles."""

# ruff: noqa: E501
from __future__ import annotations

from typing import Any

TORCH = "import math\nimport torch\nimport torch.nn as nn\nimport torch.nn.functional as F\n\n\n"

LN_HELPERS = (
    TORCH
    + """def moments(t):
    mu = t.sum(-1, keepdim=True) / t.shape[-1]
    dev = t - mu
    second = (dev * dev).sum(-1, keepdim=True) / t.shape[-1]
    return dev, second


class LayerNorm(nn.Module):
    \"\"\"Layer norm as the paper has it.\"\"\"

    def __init__(self, d_model, bias=True, epsilon=1e-5):
        super(LayerNorm, self).__init__()
        self.scale = nn.Parameter(torch.ones(d_model))
        self.shift = nn.Parameter(torch.zeros(d_model)) if bias else None
        self.epsilon = epsilon

    def forward(self, inputs):
        dev, second = moments(inputs)
        inverse = torch.rsqrt(second + self.epsilon)
        out = self.scale * (dev * inverse)
        if self.shift is not None:
            out = out + self.shift
        return out
"""
)
LN_STEPS = (
    TORCH
    + """class LayerNorm(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        dim = cfg.n_embd
        self.g = nn.Parameter(torch.full((dim,), 1.0))
        if cfg.bias:
            self.b = nn.Parameter(torch.full((dim,), 0.0))
        else:
            self.register_parameter("b", None)

    def forward(self, x):
        # Step 1. mean
        m = torch.mean(x, dim=2).unsqueeze(2)
        # Step 2. variance
        v = torch.var(x, dim=2, correction=0).unsqueeze(2)
        # Step 3. normalise
        z = torch.div(x - m, torch.sqrt(v + 1e-5))
        # Step 4. gain, bias
        z = torch.mul(z, self.g)
        return z if self.b is None else torch.add(z, self.b)
"""
)
MLP_SEQ = (
    TORCH
    + """class MLP(nn.Module):
    def __init__(self, d_model: int, dropout: float = 0.0, bias: bool = True):
        super().__init__()
        hidden = d_model * 4
        self.layers = nn.ModuleList([
            nn.Linear(d_model, hidden, bias),
            nn.Linear(hidden, d_model, bias),
        ])
        self.act = nn.GELU()
        self.drop = nn.Dropout(p=dropout)

    def forward(self, inputs):
        wide = self.layers[0](inputs)
        bent = self.act(wide)
        narrow = self.layers[1](bent)
        return self.drop(narrow)
"""
)
MLP_HAND = (
    TORCH
    + """def gaussian(t):
    return 0.5 * t * (1.0 + torch.erf(t * 0.7071067811865476))


def drop(t, rate, active):
    if not active or rate == 0:
        return t
    keep = (torch.rand(t.shape) >= rate).to(t.dtype)
    return t * keep / (1 - rate)


class MLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        n = config.n_embd
        self.up_proj = nn.Linear(n, n * 4, bias=config.bias)
        self.down_proj = nn.Linear(n * 4, n, bias=config.bias)

    def forward(self, x):
        x = self.up_proj(x)
        x = gaussian(x)
        x = self.down_proj(x)
        x = drop(x, self.config.dropout, self.training)
        return x
"""
)
BLOCK_MHA = (
    TORCH
    + """class Block(nn.Module):
    def __init__(self, d_model, n_head, dropout=0.0, bias=True):
        super().__init__()
        self.norm1 = nn.LayerNorm(d_model)
        self.norm2 = nn.LayerNorm(d_model)
        self.attn = nn.MultiheadAttention(d_model, n_head, dropout=dropout, batch_first=True)
        self.ffn = nn.Sequential(
            nn.Linear(d_model, 4 * d_model), nn.GELU(), nn.Linear(4 * d_model, d_model))

    def forward(self, x):
        T = x.size(1)
        mask = torch.triu(torch.ones(T, T, dtype=torch.bool), diagonal=1)
        n = self.norm1(x)
        a, _ = self.attn(n, n, n, attn_mask=mask, need_weights=False)
        x = x + a
        n = self.norm2(x)
        x = x + self.ffn(n)
        return x
"""
)
BLOCK_HELPERS = (
    TORCH
    + """from gptcli.course.parts import MLP, CausalSelfAttention, LayerNorm


class Residual(nn.Module):
    def __init__(self, norm, fn):
        super().__init__()
        self.norm, self.fn = norm, fn

    def forward(self, x):
        return x + self.fn(self.norm(x))


class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.ln_1 = LayerNorm(config)
        self.ln_2 = LayerNorm(config)
        self.mlp = MLP(config)
        self.attn = CausalSelfAttention(config)

    def look(self, stream):
        return self.attn(self.ln_1(stream))

    def think(self, stream):
        return self.mlp(self.ln_2(stream))

    def forward(self, x):
        stream = x
        stream = stream + self.look(stream)
        stream = stream + self.think(stream)
        return stream
"""
)
TOK_COUNTER = '''"""A small tokenizer."""
from collections import Counter
from pathlib import Path


def get_stats(tokens):
    return Counter(zip(tokens[:-1], tokens[1:]))


def apply_merge(tokens, pair, idx):
    result = []
    skip = False
    for pos, token in enumerate(tokens):
        if skip:
            skip = False
            continue
        if pos < len(tokens) - 1 and token == pair[0] and tokens[pos + 1] == pair[1]:
            result.append(idx)
            skip = True
        else:
            result.append(token)
    return result


class Tokenizer:
    def __init__(self):
        self.merges = {}
        self.vocab = {i: bytes((i,)) for i in range(256)}

    def train(self, text, num_merges):
        tokens = [*bytes(text, "utf8")]
        while len(self.merges) < num_merges:
            stats = get_stats(tokens)
            if len(stats) == 0:
                return
            top = stats.most_common(1)[0][0]
            new_id = 256 + len(self.merges)
            tokens = apply_merge(tokens, top, new_id)
            self.merges[top] = new_id
            self.vocab[new_id] = self.vocab[top[0]] + self.vocab[top[1]]

    def encode(self, text):
        tokens = [*bytes(text, "utf8")]
        while len(tokens) > 1:
            stats = get_stats(tokens)
            pair = min(stats, key=lambda p: self.merges.get(p, float("inf")))
            if pair not in self.merges:
                break
            tokens = apply_merge(tokens, pair, self.merges[pair])
        return tokens

    def decode(self, ids):
        data = bytearray()
        for i in ids:
            data += self.vocab[i]
        return bytes(data).decode("utf-8", "replace")

    def save(self, path):
        rows = [f"{a},{b},{c}" for (a, b), c in self.merges.items()]
        Path(path).write_text("\\n".join(rows))

    @classmethod
    def load(cls, path):
        made = cls()
        for row in Path(path).read_text().split("\\n"):
            if row:
                a, b, c = [int(v) for v in row.split(",")]
                made.merges[(a, b)] = c
                made.vocab[c] = made.vocab[a] + made.vocab[b]
        return made
'''
TOK_STEPS = """import pickle


class Tokenizer:
    def __init__(self):
        self.merges = {}

    def train(self, text, num_merges):
        ids = list(text.encode())
        for k in range(num_merges):
            # Step 1. Count pairs.
            freq = {}
            best, most = None, 0
            for j in range(len(ids) - 1):
                p = (ids[j], ids[j + 1])
                freq[p] = freq.get(p, 0) + 1
            for p in freq:
                if freq[p] > most:
                    best, most = p, freq[p]
            if best is None:
                break
            # Step 2. Merge.
            j = 0
            while j < len(ids) - 1:
                if (ids[j], ids[j + 1]) == best:
                    ids[j : j + 2] = [256 + k]
                j += 1
            self.merges[best] = 256 + k

    def encode(self, text):
        ids = list(text.encode())
        for pair, new in self.merges.items():
            j = 0
            while j < len(ids) - 1:
                if (ids[j], ids[j + 1]) == pair:
                    ids[j : j + 2] = [new]
                j += 1
        return ids

    def piece(self, i):
        if i < 256:
            return bytes([i])
        for (a, b), new in self.merges.items():
            if new == i:
                return self.piece(a) + self.piece(b)

    def decode(self, ids):
        return b"".join(map(self.piece, ids)).decode(errors="replace")

    def save(self, path):
        with open(path, "wb") as f:
            pickle.dump(self.merges, f)

    @staticmethod
    def load(path):
        t = Tokenizer()
        with open(path, "rb") as f:
            t.merges = pickle.load(f)
        return t
"""
TRAIN_ROWS = (
    TORCH
    + """def get_batch(data, block_size, batch_size, generator=None):
    last = data.numel() - block_size
    ix = torch.randint(0, last, size=(batch_size, 1), generator=generator)
    offsets = torch.arange(block_size).unsqueeze(0)
    xb = data[ix + offsets]
    yb = data[ix + offsets + 1]
    return xb, yb


def loss_of(logits, targets):
    B, T, V = logits.shape
    logp = F.log_softmax(logits, dim=-1)
    nll = F.nll_loss(logp.reshape(B * T, V), targets.reshape(B * T))
    return nll


def learning_rate(step, max_lr, min_lr, warmup_steps, max_steps):
    if step < warmup_steps:
        lr = max_lr * (step + 1) / warmup_steps
    elif step < max_steps:
        ratio = (step - warmup_steps) / (max_steps - warmup_steps)
        coeff = (1 + math.cos(ratio * math.pi)) / 2
        lr = coeff * max_lr + (1 - coeff) * min_lr
    else:
        lr = min_lr
    return lr


def clip_gradients(parameters, max_norm):
    params = [p for p in parameters if p.grad is not None]
    squares = 0.0
    for p in params:
        squares += p.grad.pow(2).sum().item()
    total = squares ** 0.5
    factor = max_norm / (total + 1e-12)
    if factor < 1:
        for p in params:
            p.grad *= factor
    return total


def train_step(model, optimizer, batches, lr, max_norm):
    model.train()
    for g in optimizer.param_groups:
        g["lr"] = lr
    optimizer.zero_grad(set_to_none=True)
    losses = []
    for xb, yb in batches:
        loss = loss_of(model(xb), yb)
        (loss / len(batches)).backward()
        losses.append(loss.detach())
    clip_gradients(model.parameters(), max_norm)
    optimizer.step()
    return torch.stack(losses).mean().item()


def evaluate(model, batches):
    was = model.training
    model.eval()
    total = 0.0
    with torch.no_grad():
        for xb, yb in batches:
            total += loss_of(model(xb), yb).item()
    model.train(was)
    return total / len(batches)
"""
)
NORM_MHA = "a, _ = self.attn(n, n, n, attn_mask=mask, need_weights=False)"

RIGHT: dict[str, list[str]] = {
    "layernorm": [LN_HELPERS, LN_STEPS, LN_STEPS.replace("cfg.n_embd", 'cfg["hidden_size"]')],
    "mlp": [
        MLP_SEQ,
        MLP_HAND,
        MLP_SEQ.replace("self.act(wide)", "self.drop(self.act(wide))").replace(
            "self.drop(narrow)", "narrow"
        ),
    ],
    "block": [
        BLOCK_MHA,
        BLOCK_MHA.replace("batch_first=True", "batch_first=False")
        .replace("n = self.norm1(x)\n", "n = self.norm1(x).transpose(0, 1)\n")
        .replace("x = x + a\n", "x = x + a.transpose(0, 1)\n"),
        BLOCK_HELPERS,
    ],
    "tokenizer": [
        TOK_COUNTER,
        TOK_STEPS,
        TOK_STEPS.replace("@staticmethod\n    def load(path):\n        t = Tokenizer()",
                          "def load(self, path):\n        t = self"),
    ],
    "training": [
        TRAIN_ROWS,
        TRAIN_ROWS.replace("    model.eval()\n    total", "    torch.set_grad_enabled(False)\n    "
                           "model.eval()\n    total")
        .replace("    model.train(was)", "    model.train(was)\n    torch.set_grad_enabled(True)"),
        TRAIN_ROWS.replace("        (loss / len(batches)).backward()\n", "").replace(
            "losses.append(loss.detach())", "losses.append(loss)"
        ).replace("    clip_gradients(model", "    torch.stack(losses).mean().backward()\n"
                  "    clip_gradients(model"),
    ],
}  # fmt: skip

Entry = tuple[Any, ...]
# The mistakes of each exercise. An entry holds the slug of the mistake ("*" if any slug will do),
# the step that is wrong, a pattern that matches the message, and the text of a right file. Pairs
# follow: a text of this right file, and the text that replaces it.
WRONG: dict[str, list[Entry]] = {
    "layernorm": [
        ("*", 1, "mu = t.sum", LN_HELPERS, "t.sum(-1, keepdim=True) / t", "t.sum(1, keepdim=True) / t"),
        ("*", 2, "second = ", LN_HELPERS, "(dev * dev).sum(-1, keepdim=True) / t.shape[-1]",
         "(dev * dev).sum(-1, keepdim=True) / (t.shape[-1] - 1)"),
        ("*", 2, "second = ", LN_HELPERS, "(dev * dev)", "(t * t)"),
        ("eps-outside", 3, "inverse", LN_HELPERS, "torch.rsqrt(second + self.epsilon)",
         "1 / (second.sqrt() + self.epsilon)"),
        ("another-eps", 3, "eps", LN_HELPERS, "1e-5", "1e-8"),
        ("bias-before-gain", 4, "line", LN_HELPERS, "self.scale * (dev * inverse)", "dev * inverse",
         "        return out\n", "        return out * self.scale\n"),
        ("gain-not-ones", 4, "starts at 0", LN_STEPS, "(dim,), 1.0", "(dim,), 0.0"),
        ("unbiased-variance", 2, "torch.var", LN_STEPS, "correction=0", "correction=1"),
        ("not-implemented", 3, "step 3", LN_STEPS, "z = torch.div(x - m, torch.sqrt(v + 1e-5))",
         "raise NotImplementedError"),
        ("no-gradient", 2, "torch.var", LN_STEPS, "correction=0)", "correction=0).detach()"),
        ("input-changed", 3, "sub_", LN_STEPS, "torch.div(x - m,", "torch.div(x.sub_(m),"),
        ("dimension-lost", 2, "the size of tensor|must match|shape", LN_STEPS,
         "correction=0).unsqueeze(2)", "correction=0)"),
        ("dimension-lost", 1, "the size of tensor|must match|shape", LN_STEPS,
         "        # Step 1. mean\n", "", "        # Step 2. variance\n", "",
         "torch.mean(x, dim=2).unsqueeze(2)", "torch.mean(x, dim=2)"),
        ("missing", 1, "no method `forward`", LN_STEPS, "def forward", "def foward"),
        ("no-root", 3, "line", LN_STEPS, "torch.sqrt(v + 1e-5)", "v + 1e-5"),
    ],
    "mlp": [
        ("relu", 2, "nn.ReLU", MLP_SEQ, "nn.GELU()", "nn.ReLU()"),
        ("tanh-gelu", 2, "tanh", MLP_SEQ, "nn.GELU()", 'nn.GELU(approximate="tanh")'),
        ("wrong-width", 1, "4 x", MLP_SEQ, "d_model * 4", "d_model * 2"),
        ("dropout-rate-inverted", 4, "1 - dropout", MLP_SEQ, "p=dropout", "p=1 - dropout"),
        ("dropout-rate", 4, "p=0.2", MLP_SEQ, "p=dropout", "p=0.2"),
        ("dropout-never-acts", 4, "narrow", MLP_SEQ, "self.drop(narrow)", "narrow"),
        ("no-activation", 2, "line", MLP_SEQ, "self.act(wide)", "wide"),
        ("gelu-after-projection", 2, "self.act", MLP_SEQ, "self.act(wide)", "wide",
         "self.layers[1](bent)", "self.act(self.layers[1](bent))"),
        ("dropout-not-scaled", 4, "drop", MLP_HAND, "t * keep / (1 - rate)", "t * keep"),
        ("dropout-in-evaluation", 4, "drop", MLP_HAND, ", self.training)", ", True)"),
        ("relu", 2, "relu", MLP_HAND, "x = gaussian(x)", "x = x.relu()",
         ", self.training)", ", True)"),
        ("gelu-without-half", 2, "erf", MLP_HAND, "0.5 * t * (1.0", "t * (1.0"),
        ("residual-inside", 3, "line", MLP_HAND, "    def forward(self, x):\n",
         "    def forward(self, x):\n        keep = x\n", "        return x\n",
         "        return x + keep\n"),
        ("wrong-second-layer", 3, "down_proj", MLP_HAND, "nn.Linear(n * 4, n, ", "nn.Linear(n, n * 4, "),
    ],
    "block": [
        ("no-first-norm", 1, "self.attn", BLOCK_MHA, "n = self.norm1(x)", "n = x"),
        ("no-first-residual", 2, "line", BLOCK_MHA, "x = x + a\n", "x = a\n"),
        ("no-second-norm", 3, "self.ffn", BLOCK_MHA, "self.ffn(n)", "self.ffn(x)"),
        ("no-second-residual", 4, "self.ffn", BLOCK_MHA, "x = x + self.ffn(n)", "x = self.ffn(n)"),
        ("norm-at-the-end", 4, "return", BLOCK_MHA, "return x", "return self.norm2(x)"),
        ("sum-scaled", 2, "0.5", BLOCK_MHA, "x = x + a\n", "x = 0.5 * (x + a)\n"),
        ("no-second-half", 3, "return", BLOCK_HELPERS,
         "        stream = stream + self.think(stream)\n", ""),
        ("no-first-half", 1, "think|return", BLOCK_HELPERS,
         "        stream = stream + self.look(stream)\n", ""),
        ("*", 1, "self.mlp", BLOCK_HELPERS, "stream + self.look", "stream + self.think",
         "stream = stream + self.think(stream)\n        return",
         "stream = stream + self.look(stream)\n        return"),
        ("first-norm-again", 3, "self.mlp", BLOCK_HELPERS, "self.ln_2(stream)", "self.ln_1(stream)"),
        ("parallel", 3, "line", BLOCK_HELPERS,
         "stream + self.look(stream)\n        stream = stream + self.think(stream)",
         "x + self.look(x) + self.think(x)"),
        ("input-changed", 2, "stream \\+=", BLOCK_HELPERS, "stream = stream + self.look(stream)",
         "stream += self.look(stream)"),
        ("no-gradient", 1, "detach", BLOCK_HELPERS, "self.ln_1(stream)", "self.ln_1(stream.detach())"),
        ("raises", 2, "attention", BLOCK_HELPERS, "self.attn(self", "self.attention(self"),
    ],
    "tokenizer": [
        ("*", 1, "top = |frequent", TOK_COUNTER, "stats.most_common(1)[0][0]",
         "stats.most_common()[-1][0]"),
        ("ties-largest-pair", 1, "max", TOK_COUNTER, "stats.most_common(1)[0][0]",
         "max(stats, key=lambda q: (stats[q], q))"),
        ("time-limit", 2, "does not end", TOK_COUNTER, "tokens = apply_merge(tokens, top, new_id)",
         "apply_merge(tokens, top, new_id)"),
        ("*", 2, "result|skip|pos", TOK_COUNTER, "            skip = True\n", ""),
        ("raises", 2, "apply_merge|result", TOK_COUNTER, "result.append(token)", "results.append(token)"),
        ("not-implemented", 2, "step 2", TOK_COUNTER, "    result = []\n",
         '    raise NotImplementedError("step 2: merge")\n    result = []\n'),
        ("merges-reversed", 2, "new_id\\]", TOK_COUNTER, "self.merges[top] = new_id",
         "self.merges[new_id] = top"),
        ("latest-merge-first", 3, "max", TOK_COUNTER,
         'min(stats, key=lambda p: self.merges.get(p, float("inf")))',
         "max(stats, key=lambda p: self.merges.get(p, -1))"),
        ("missing", 3, "no method `encode`", TOK_COUNTER, "def encode(", "def encode_text("),
        ("strict-utf8", 4, "decode", TOK_STEPS, 'decode(errors="replace")', "decode()"),
        ("encodes-not-utf8", 3, "latin", TOK_STEPS,
         "ids = list(text.encode())\n        for pair",
         'ids = list(text.encode("latin-1", "ignore"))\n        for pair'),
        ("load-loses-merges", 5, "after save and load", TOK_STEPS, "t.merges = pickle.load(f)",
         "pickle.load(f)"),
        ("*", 1, "most", TOK_STEPS, "freq[p] > most", "freq[p] >= most"),
        ("*", 2, "later merge|merge", TOK_STEPS,
         "ids[j : j + 2] = [256 + k]\n                j += 1\n            self",
         "ids[j : j + 2] = [256 + k]\n                    break\n                j += 1\n            self"),
        ("load-loses-merges", 5, "load", TOK_COUNTER, "made.merges[(a, b)] = c", "cls.merges = {(a, b): c}"),
    ],
    "training": [
        ("targets-not-shifted", 1, "yb = ", TRAIN_ROWS, "data[ix + offsets + 1]", "data[ix + offsets]"),
        ("targets-rolled", 1, "roll", TRAIN_ROWS, "data[ix + offsets + 1]", "xb.roll(-1, dims=1)"),
        ("last-start-missing", 1, "begins at token 1", TRAIN_ROWS, "data.numel() - block_size",
         "data.numel() - block_size - 1"),
        ("softmax-twice", 2, "softmax", TRAIN_ROWS, "F.log_softmax(logits, dim=-1)",
         "F.log_softmax(logits.softmax(-1), dim=-1)"),
        ("loss-summed", 2, "sum", TRAIN_ROWS, "targets.reshape(B * T))",
         'targets.reshape(B * T), reduction="sum")'),
        ("decay-from-zero", 3, "ratio", TRAIN_ROWS, "(step - warmup_steps) / (max_steps - warmup_steps)",
         "step / max_steps"),
        ("*", 3, "lr = |coeff", TRAIN_ROWS, "coeff * max_lr + (1 - coeff) * min_lr",
         "(1 - coeff) * max_lr + coeff * min_lr"),
        ("no-root", 4, "squares", TRAIN_ROWS, "squares ** 0.5", "squares"),
        ("parameters-exhausted", 4, "for p in parameters", TRAIN_ROWS,
         "    for p in params:\n        squares", "    for p in parameters:\n        squares",
         "    params = [p for p in parameters if p.grad is not None]\n", "",
         "for p in params:\n            p.grad", "for p in parameters:\n            p.grad"),
        ("no-step", 5, "never call", TRAIN_ROWS, "    optimizer.step()\n", ""),
        ("no-zero-grad", 5, "line", TRAIN_ROWS, "    optimizer.zero_grad(set_to_none=True)\n", ""),
        ("not-divided", 5, "backward", TRAIN_ROWS, "(loss / len(batches)).backward()", "loss.backward()"),
        ("not-in-eval-mode", 6, "loss_of\\(model", TRAIN_ROWS, "    model.eval()\n", ""),
        ("gradients-on", 6, "loss_of\\(model", TRAIN_ROWS, "with torch.no_grad():", "if True:"),
        ("autograd-left-off", 6, "set_grad_enabled", TRAIN_ROWS, "    with torch.no_grad():",
         "    torch.set_grad_enabled(False)\n    if True:"),
        ("missing", 4, "no function `clip_gradients`", TRAIN_ROWS, "def clip_gradients", "def clip_grads"),
    ],
}  # fmt: skip


def wrong_text(entry: Entry) -> str:
    """The text of a wrong file: the entry's right file after the entry's replacements."""
    text: str = entry[3]
    for old, new in zip(entry[4::2], entry[5::2], strict=True):
        assert old in text, f"{entry[0]}: {old!r}"
        text = text.replace(old, new)
    return text
