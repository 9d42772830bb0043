"""Right and wrong layer norms, MLPs and blocks, most of them made from three templates."""

# ruff: noqa: E501
from __future__ import annotations

from typing import Any

HEAD = "import math\n\nimport torch\nimport torch.nn.functional as F\nfrom torch import nn\n\n\n"

BASE = {
    "layernorm": HEAD
    + """class LayerNorm(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(config.n_embd))
        self.bias = nn.Parameter(torch.zeros(config.n_embd)) if config.bias else None
        self.eps = 1e-5

    def forward(self, x):
        mean = x.mean(dim=-1, keepdim=True)
        var = ((x - mean) ** 2).mean(dim=-1, keepdim=True)
        normal = (x - mean) / torch.sqrt(var + self.eps)
        b = 0 if self.bias is None else self.bias
        return normal * self.weight + b
""",
    "mlp": HEAD
    + """class MLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd, bias=config.bias)
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd, bias=config.bias)
        self.dropout = nn.Dropout(config.dropout)
        self.p = config.dropout

    def forward(self, x):
        h = self.c_fc(x)
        h = F.gelu(h)
        y = self.c_proj(h)
        return self.dropout(y)
""",
    "block": HEAD
    + """from gptcli.course.parts import MLP, CausalSelfAttention, LayerNorm


class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.ln_1 = LayerNorm(config)
        self.attn = CausalSelfAttention(config)
        self.ln_2 = LayerNorm(config)
        self.mlp = MLP(config)

    def forward(self, x):
        h = x + self.attn(self.ln_1(x))
        return h + self.mlp(self.ln_2(h))
""",
}

VAR = "var = ((x - mean) ** 2).mean(dim=-1, keepdim=True)"
MEAN = "mean = x.mean(dim=-1, keepdim=True)"
NORMAL = "normal = (x - mean) / torch.sqrt(var + self.eps)"
OUT = "normal * self.weight + b"
HALF1 = "h = x + self.attn(self.ln_1(x))"
HALF2 = "return h + self.mlp(self.ln_2(h))"
GELU = "F.gelu(h)"
UP = "nn.Linear(config.n_embd, 4 * config.n_embd, bias=config.bias)"
DOWN = "nn.Linear(4 * config.n_embd, config.n_embd, bias=config.bias)"

Entry = tuple[Any, ...]
# The mistakes of each exercise. An entry holds the slug of the mistake, the step that is wrong, and
# then pairs: a text of the exercise's template, and the text that replaces it.
WRONG: dict[str, list[Entry]] = {
    "layernorm": [
        ("missing-gain", 4, "nn.Parameter(torch.ones(config.n_embd))", "torch.ones(config.n_embd)"),
        ("bias-ignored", 4, " if config.bias else None", ""),
        ("gain-not-ones", 4, "torch.ones", "torch.zeros"),
        ("bias-not-zeros", 4, "torch.zeros", "torch.ones"),
        ("mean-over-time", 1, "dim=-1", "dim=1"),
        ("mean-over-time", 1, MEAN, "mean = x.mean(1, keepdim=True)"),
        ("mean-over-batch", 1, "dim=-1", "dim=0"),
        ("mean-over-everything", 1, "dim=-1, keepdim=True", ""),
        ("mean-over-everything", 1, MEAN, "mean = x.mean()"),
        ("mean-over-tokens-and-channels", 1, "dim=-1", "dim=(-2, -1)"),
        ("mean-over-batch-and-time", 1, "dim=-1", "dim=(0, 1)"),
        ("rms", 1, MEAN, "mean = 0"),
        ("unbiased-variance", 2, VAR, "var = x.var(dim=-1, keepdim=True)"),
        ("unbiased-variance", 2, "torch.sqrt(var + self.eps)", "(x.std(-1, keepdim=True) + 1e-5)"),
        ("sum-for-mean", 2, VAR, VAR.replace(".mean", ".sum")),
        ("not-squared", 2, "((x - mean) ** 2)", "(x - mean).abs()"),
        ("root-of-deviation", 2, VAR, VAR + ".sqrt()"),
        ("root-of-deviation", 2, VAR, "var = x.std(dim=-1, keepdim=True)"),
        ("variance-not-centred", 2, VAR, "var = (x ** 2).mean(dim=-1, keepdim=True)"),
        ("eps-outside", 3, "torch.sqrt(var + self.eps)", "(torch.sqrt(var) + self.eps)"),
        ("eps-divided", 3, "var + self.eps", "var + self.eps / x.shape[-1]"),
        ("eps-divided", 3, VAR, VAR.replace(".mean(dim=-1, keepdim=True)",
         ".sum(-1, keepdim=True) + 1e-5"), "var + self.eps", "var / x.shape[-1]"),
        ("no-eps", 3, "var + self.eps", "var"),
        ("another-eps", 3, "1e-5", "1e-6"),
        ("another-eps", 3, "1e-5", "1e-12"),
        ("no-root", 3, "torch.sqrt(var + self.eps)", "(var + self.eps)"),
        ("not-centred", 3, NORMAL, NORMAL.replace("(x - mean)", "x")),
        ("multiplied-by-root", 3, NORMAL, NORMAL.replace("/", "*")),
        ("no-gain", 4, OUT, "normal + b"),
        ("no-bias", 4, OUT, "normal * self.weight"),
        ("no-gain-or-bias", 4, OUT, "normal"),
        ("gain-added", 4, OUT, "normal + self.weight + b"),
        ("bias-before-gain", 4, OUT, "(normal + b) * self.weight"),
        ("bias-subtracted", 4, OUT, "normal * self.weight - b"),
        ("gain-plus-one", 4, OUT, "normal * (1 + self.weight) + b"),
        ("gain-and-bias-swapped", 4, "return " + OUT, "return normal * (self.weight if self.bias "
         "is None else self.bias) + (0 if self.bias is None else self.weight)"),
        ("input-changed", 3, NORMAL, "x -= mean\n        normal = x / torch.sqrt(var + self.eps)"),
        ("no-gradient", 3, NORMAL, NORMAL.replace("(x - mean)", "(x - mean).detach()")),
        ("no-gradient", 3, "torch.sqrt(var", "torch.sqrt(var.detach()"),
        ("dropout-in-evaluation", 4, "return " + OUT, "return F.dropout(normal)"),
        ("changes-in-training", 4, "return " + OUT,
         "return F.dropout(normal * self.weight + b, 0.5, self.training)"),
        ("not-implemented", 3, NORMAL, "raise NotImplementedError"),
        ("raises", 2, VAR, "var = ((x - mean) ** 2).mean(dim=7)"),
        ("output-shape", 4, OUT, "(normal * self.weight + b).sum(-1)"),
        ("returns-nothing", 4, "return " + OUT, "normal * self.weight + b"),
        ("wrong-output", 2, VAR, "var = ((x - mean) ** 4).mean(dim=-1, keepdim=True)"),
        # Each of the next two entries makes two mistakes. The check names the mistake in the
        # earlier step.
        ("unbiased-variance", 2, VAR, "var = x.var(dim=-1, keepdim=True)", OUT, "normal"),
        ("mean-over-time", 1, MEAN, "mean = x.mean(1, keepdim=True)", "var + self.eps", "var + 1"),
        ("precision", 1, MEAN, "mean = x.float().mean(dim=-1, keepdim=True).double()"),
    ],
    "mlp": [
        ("no-second-layer", 3, "self.c_proj = " + DOWN, "self.c_proj = nn.Identity()"),
        ("missing-layer", 1, "self.c_proj = " + DOWN, "self.c_proj = nn.Identity()",
         "self.c_fc = " + UP, "self.c_fc = nn.Identity()"),
        ("fixed-width", 1, UP, "nn.Linear(768, 3072)", DOWN, "nn.Linear(3072, 768)"),
        ("wrong-second-layer", 3, DOWN, UP),
        ("dropout-never-acts", 4, "self.dropout(y)", "y"),
        ("dropout-rate-inverted", 4, "nn.Dropout(config", "nn.Dropout(1 - config"),
        ("dropout-rate", 4, "nn.Dropout(config.dropout)", "nn.Dropout(0.1)"),
        ("dropout-not-scaled", 4, "return self.dropout(y)",
         "return y * (torch.rand(y.shape) >= self.p) if self.training else y"),
        ("dropout-in-groups", 4, "return self.dropout(y)",
         "return y * self.dropout(torch.ones(y.shape[:2]))[..., None]"),
        ("dropout-elsewhere", 4, "self.dropout(y)", "y", "self.c_fc(x)", "self.c_fc(self.dropout(x))"),
        ("generator-reset", 4, "y = self.c_proj(h)",
         "y = self.c_proj(h)\n        torch.manual_seed(0)"),
        ("dropout-repeated", 4, "self.p = config.dropout", "self.p, self.mask = config.dropout, None",
         "return self.dropout(y)", "if self.training and self.mask is None:\n"
         "            self.mask = self.dropout(torch.ones_like(y))\n"
         "        return y * self.mask if self.training else y"),
        ("gated", 1, "self.p = config.dropout", "self.gate = " + UP, GELU,
         "F.silu(self.gate(x)) * h"),
        ("wrong-width", 1, "4 * config.n_embd", "3 * config.n_embd"),
        ("wrong-width", 1, "4 * config.n_embd", "config.n_embd"),
        ("bias-ignored", 1, UP, UP.replace(", bias=config.bias", "")),
        ("projection-bias-ignored", 3, DOWN, DOWN.replace(", bias=config.bias", ", bias=True")),
        ("gelu-before-expanding", 1, "self.c_fc(x)", "self.c_fc(F.gelu(x))", GELU, "h"),
        ("tanh-gelu", 2, GELU, 'F.gelu(h, approximate="tanh")'),
        ("tanh-gelu", 2, GELU,
         "0.5 * h * (1 + torch.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h ** 3)))"),
        ("relu", 2, GELU, "F.relu(h)"),
        ("silu", 2, GELU, "h * torch.sigmoid(h)"),
        ("sigmoid-gelu", 2, GELU, "h * torch.sigmoid(1.702 * h)"),
        ("no-activation", 2, GELU, "h"),
        ("sigmoid", 2, GELU, "torch.sigmoid(h)"),
        ("tanh", 2, GELU, "torch.tanh(h)"),
        ("leaky-relu", 2, GELU, "F.leaky_relu(h)"),
        ("gelu-twice", 2, GELU, "F.gelu(F.gelu(h))"),
        ("gelu-without-x", 2, GELU, "0.5 * (1 + torch.erf(h / math.sqrt(2)))"),
        ("gelu-without-root", 2, GELU, "0.5 * h * (1 + torch.erf(h))"),
        ("gelu-without-half", 2, GELU, "h * (1 + torch.erf(h / math.sqrt(2)))"),
        ("gelu-after-projection", 2, GELU, "h", "self.c_proj(h)", "F.gelu(self.c_proj(h))"),
        ("output-bent", 3, "self.c_proj(h)", "F.gelu(self.c_proj(h))"),
        ("residual-inside", 3, "self.c_proj(h)", "x + self.c_proj(h)"),
        ("dropout-in-evaluation", 4, "self.dropout(y)", "F.dropout(y, self.p)"),
        ("scaled-in-evaluation", 4, "self.dropout(y)", "y * (1 - self.p)"),
        ("input-changed", 2, "h = self.c_fc(x)", "h = self.c_fc(x)\n        x.mul_(2)"),
        ("no-gradient", 2, GELU, "F.gelu(h).detach()"),
        ("not-implemented", 2, "h = F.gelu(h)", "raise NotImplementedError"),
        ("output-shape", 3, "y = self.c_proj(h)", "y = h"),
        ("relu", 2, GELU, "F.relu(h)", "self.dropout(y)", "x + y"),
        ("wrong-output", 2, GELU, "h ** 3"),
        ("wrong-output", 4, "return self.dropout(y)", "return 3 * y"),
    ],
    "block": [
        ("missing-attention", 2, "self.attn = CausalSelfAttention(config)", "self.attn = None"),
        ("missing-mlp", 4, "self.mlp = MLP(config)", ""),
        ("missing-norm", 1, "self.ln_1 = LayerNorm(config)", "",
         "self.ln_2 = LayerNorm(config)", ""),
        ("shared-norm", 3, "self.ln_2 = LayerNorm(config)", "self.ln_2 = self.ln_1"),
        ("shared-norm", 3, "self.ln_2 = LayerNorm(config)", ""),
        ("post-norm", 1, HALF1, "h = self.ln_1(x + self.attn(x))",
         HALF2, "return self.ln_2(h + self.mlp(h))"),
        ("branch-normed", 1, HALF1, "h = x + self.ln_1(self.attn(x))",
         HALF2, "return h + self.ln_2(self.mlp(h))"),
        ("no-norms", 1, HALF1, "h = x + self.attn(x)", HALF2, "return h + self.mlp(h)"),
        ("no-first-norm", 1, HALF1, "h = x + self.attn(x)"),
        ("norms-swapped", 1, "self.ln_1(x)", "self.ln_2(x)", "self.ln_2(h)", "self.ln_1(h)"),
        ("mlp-first", 1, HALF1, "h = x + self.mlp(self.ln_1(x))",
         HALF2, "return h + self.attn(self.ln_2(h))"),
        ("nothing-done", 1, HALF1, "h = x", HALF2, "return h"),
        ("no-residuals", 2, HALF1, "h = self.attn(self.ln_1(x))",
         HALF2, "return self.mlp(self.ln_2(h))"),
        ("no-first-residual", 2, "x + self.attn", "self.attn"),
        ("residual-from-norm", 2, HALF1, "x = self.ln_1(x)\n        h = x + self.attn(x)"),
        ("no-first-half", 1, HALF1, "h = x"),
        ("no-attention", 2, HALF1, "h = x + self.ln_1(x)"),
        ("sum-scaled", 2, HALF1, "h = (x + self.attn(self.ln_1(x))) / 2",
         HALF2, "return (h + self.mlp(self.ln_2(h))) / 2"),
        ("second-sum-scaled", 4, HALF2, "return (h + self.mlp(self.ln_2(h))) / 2"),
        ("attention-twice", 2, "x + self.attn", "x + 2 * self.attn"),
        ("residual-doubled", 2, "x + self.attn", "x + x + self.attn"),
        ("first-norm-again", 3, "self.ln_2(h)", "self.ln_1(h)"),
        ("no-second-norm", 3, "self.ln_2(h)", "h"),
        ("second-branch-normed", 3, "self.mlp(self.ln_2(h))", "self.ln_2(self.mlp(h))"),
        ("parallel", 3, "self.ln_2(h)", "self.ln_2(x)"),
        ("attention-normed-again", 3, "self.ln_2(h)", "self.ln_2(h - x)"),
        ("no-second-residual", 4, HALF2, "return self.mlp(self.ln_2(h))"),
        ("second-residual-from-norm", 4, HALF2, "h = self.ln_2(h)\n        return h + self.mlp(h)"),
        ("second-residual-from-x", 4, HALF2, "return x + self.mlp(self.ln_2(h))"),
        ("no-second-half", 3, HALF2, "return h"),
        ("no-mlp", 4, HALF2, "return self.ln_2(h)"),
        ("norm-at-the-end", 4, HALF2, "return self.ln_2(h + self.mlp(self.ln_2(h)))"),
        ("generator-reset", 2, HALF1, "torch.random.manual_seed(7)\n        " + HALF1),
        ("dropout-repeated", 2, HALF1, "with torch.random.fork_rng():\n"
         "            torch.manual_seed(7)\n            " + HALF1,
         HALF2, "with torch.random.fork_rng():\n            torch.manual_seed(8)\n"
         "            return h + self.mlp(self.ln_2(h))"),
        ("dropout-in-evaluation", 2, "self.attn(self.ln_1(x))",
         "F.dropout(self.attn(self.ln_1(x)))"),
        ("input-changed", 2, HALF1, "x += self.attn(self.ln_1(x))\n        h = x"),
        ("no-gradient", 3, "self.mlp(self.ln_2(h))", "self.mlp(self.ln_2(h.detach()))"),
        ("not-implemented", 3, HALF2, "raise NotImplementedError"),
        ("wrong-output", 1, "self.ln_1(x)", "x", HALF2, "return self.mlp(self.ln_2(h))"),
        ("wrong-output", 2, "x + self.attn", "x + 0.3 * self.attn"),
    ],
}  # fmt: skip

RIGHT: dict[str, dict[str, str]] = {
    "layernorm": {
        "plain": BASE["layernorm"],
        "torch_function": HEAD
        + """class LayerNorm(nn.Module):
    def __init__(self, ndim, bias):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(ndim))
        self.bias = nn.Parameter(torch.zeros(ndim)) if bias else None

    def forward(self, input):
        return F.layer_norm(input, self.weight.shape, self.weight, self.bias, 1e-5)
""",
        "var_mean": HEAD
        + """class LayerNorm(nn.Module):
    def __init__(self, n_embd, bias=True, eps=1e-5):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(n_embd))
        if bias:
            self.beta = nn.Parameter(torch.zeros(n_embd))
        self.has, self.eps = bias, eps

    def forward(self, x):
        var, mean = torch.var_mean(x, dim=-1, unbiased=False, keepdim=True)
        y = (x - mean).mul(torch.rsqrt(var + self.eps)).mul(self.gamma)
        return y + self.beta if self.has else y
""",
        "moments": HEAD
        + """class LayerNorm(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.norm = nn.LayerNorm(config.n_embd, bias=config.bias)

    def forward(self, x):
        B, T, C = x.shape
        rows = x.reshape(B * T, C)
        m = rows.sum(1) / C
        d = rows - m[:, None]
        v = torch.einsum("nc,nc->n", d, d) / C
        y = d / (v[:, None] + 1e-5) ** 0.5 * self.norm.weight[None]
        if self.norm.bias is not None:
            y = y + self.norm.bias
        return y.view(B, T, C)
""",
    },
    "mlp": {
        "plain": BASE["mlp"],
        "sequential": HEAD
        + """class MLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        C = config.n_embd
        self.net = nn.Sequential(nn.Linear(C, 4 * C, bias=config.bias), nn.GELU(),
                                 nn.Linear(4 * C, C, bias=config.bias), nn.Dropout(config.dropout))

    def forward(self, x):
        return self.net(x)
""",
        "by_hand": HEAD
        + """class MLP(nn.Module):
    def __init__(self, n_embd, dropout, bias):
        super().__init__()
        self.fc2 = nn.Linear(4 * n_embd, n_embd, bias=bias)
        self.fc1 = nn.Linear(n_embd, 4 * n_embd, bias=bias)
        self.p = dropout

    def forward(self, x):
        h = torch.einsum("btc,fc->btf", x, self.fc1.weight)
        if self.fc1.bias is not None:
            h = h + self.fc1.bias
        h = h * torch.distributions.Normal(0.0, 1.0).cdf(h)
        return F.dropout(self.fc2(h), self.p, training=self.training)
""",
        "bare": HEAD
        + """class MLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        C = config.n_embd
        self.w1 = nn.Parameter(torch.randn(C, 4 * C) * 0.02)
        self.w2 = nn.Parameter(torch.randn(4 * C, C) * 0.02)
        self.b1 = nn.Parameter(torch.zeros(4 * C)) if config.bias else None
        self.b2 = nn.Parameter(torch.zeros(C)) if config.bias else None
        self.p = config.dropout

    def forward(self, x):
        h = x @ self.w1 + (0 if self.b1 is None else self.b1)
        y = F.gelu(h) @ self.w2
        y = y + (0 if self.b2 is None else self.b2)
        if self.training and self.p > 0:
            y = y * (torch.rand_like(y) > self.p) / (1 - self.p)
        return y
""",
    },
    "block": {
        "plain": BASE["block"],
        "torch_parts": HEAD
        + """from gptcli.model.attention import CausalSelfAttention


class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        C = config.n_embd
        self.norm1 = nn.LayerNorm(C, bias=config.bias)
        self.attention = CausalSelfAttention(config)
        self.norm2 = nn.LayerNorm(C, bias=config.bias)
        self.ffn = nn.Sequential(nn.Linear(C, 4 * C), nn.ReLU(), nn.Linear(4 * C, C))

    def forward(self, x):
        for norm, branch in ((self.norm1, self.attention), (self.norm2, self.ffn)):
            x = x + branch(norm(x))
        return x
""",
        "given_classes": BASE["block"]
        .replace("(self, config):", "(self, config, attention=CausalSelfAttention, mlp=MLP, "
                 "layernorm=LayerNorm):")
        .replace("= MLP(", "= mlp(")
        .replace("= CausalSelfAttention(", "= attention(")
        .replace("= LayerNorm(", "= layernorm("),
        "other_names": BASE["block"]
        .replace("ln_1", "before_looking")
        .replace("ln_2", "before_thinking")
        .replace("self.attn", "self.look")
        .replace("self.mlp", "self.think")
        .replace("h = x + self.look(self.before_looking(x))",
                 "residual = x.clone()\n"
                 "        h = self.look(self.before_looking(x)).add_(residual)"),
    },
}  # fmt: skip


def wrong_text(exercise: str, entry: Entry) -> str:
    """The text of a wrong file: the template of the exercise with the replacements of `entry`."""
    text = BASE[exercise]
    changes = entry[2:]
    for old, new in zip(changes[::2], changes[1::2], strict=True):
        assert old in text, f"{entry[0]}: {old!r}"
        text = text.replace(old, new)
    return text
