"""Wrong attention files: each is a correct file of the folder files/ with one text replaced."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

FILES = Path(__file__).parent / "files"


@dataclass(frozen=True)
class WrongFile:
    """A wrong file: the correct file `file`, but with `new` in place of `old`.

    The report on this file must name the mistake `slug`. The report's message must contain
    `says`."""

    name: str
    slug: str
    says: str
    old: str
    new: str
    file: str = "course_style.py"

    def text(self) -> str:
        """The text of this wrong file."""
        right = (FILES / self.file).read_text(encoding="utf-8")
        assert self.old in right, f"{self.name}: {self.file} no longer has {self.old!r}"
        return right.replace(self.old, self.new)


MASK = 'scores = scores.masked_fill(mask == 0, float("-inf"))'
SOFTMAX = "weights = F.softmax(scores, dim=-1)"

WRONG_FILES = (
    WrongFile("no_mask", "mask-missing", "token 0 looks at all 5 tokens", MASK, ""),
    WrongFile(
        "mask_off_by_one",
        "mask-lets-next-token-in",
        "looks at token 1",
        "torch.tril(torch.ones(T, T, device=x.device))",
        "torch.tril(torch.ones(T, T, device=x.device), diagonal=1)",
    ),
    WrongFile(
        "mask_hides_diagonal",
        "mask-hides-diagonal",
        "a token cannot see itself",
        "torch.tril(torch.ones(T, T, device=x.device))",
        "torch.tril(torch.ones(T, T, device=x.device), diagonal=-1)",
    ),
    WrongFile(
        "mask_too_weak",
        "mask-fill-too-weak",
        "hidden scores become -100",
        'float("-inf")',
        "-100.0",
    ),
    WrongFile(
        "mask_not_sliced",
        "raises",
        "line 25 of",
        "+ self.mask[:T, :T]",
        "+ self.mask",
        file="mask_buffer.py",
    ),
    WrongFile(
        "scale_of_n_embd",
        "scale-sqrt-n-embd",
        "sqrt(n_embd) = 4.90",
        "math.sqrt(self.head_dim)",
        "math.sqrt(C)",
    ),
    WrongFile("no_scale", "scale-missing", "sqrt(8) = 2.83", " / math.sqrt(self.head_dim)", ""),
    WrongFile(
        "softmax_over_queries",
        "softmax-over-queries",
        "dim=-2",
        SOFTMAX,
        "weights = F.softmax(scores, dim=1)",
    ),
    WrongFile(
        "interleaved_heads",
        "heads-interleaved",
        "you cut the 24 channels as (8, 3)",
        "view(B, T, self.n_head, self.head_dim).transpose(1, 2)",
        "view(B, T, self.head_dim, self.n_head).permute(0, 3, 1, 2)",
    ),
    WrongFile(
        "split_without_transpose",
        "split-without-transpose",
        "you view (2, 5, 24) with the 3 heads before time",
        "view(B, T, self.n_head, self.head_dim).transpose(1, 2)",
        "view(B, self.n_head, T, self.head_dim)",
    ),
    WrongFile(
        "not_merged",
        "output-shape",
        "output has shape (2, 5, 3, 8), expected (2, 5, 24)",
        "y = y.transpose(1, 2).contiguous().view(B, T, C)\n        y = self.resid_dropout(y)\n"
        "        return self.c_proj(y)",
        "return y.transpose(1, 2)",
    ),
    WrongFile(
        "projection_left_out",
        "projection-left-out",
        "(2, 5, 24), without the output projection",
        "return self.c_proj(y)",
        "return y",
    ),
    WrongFile(
        "no_output_projection",
        "missing-projection",
        "no c_proj",
        "self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)",
        "pass",
    ),
    WrongFile(
        "key_is_query",
        "shared-projection",
        "`query` and `key` are the same weights",
        "self.key = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)",
        "self.key = self.query",
    ),
    WrongFile(
        "wide_value",
        "projection-shape",
        "shape (48, 24)",
        "self.value = nn.Linear(config.n_embd, config.n_embd",
        "self.value = nn.Linear(config.n_embd, 2 * config.n_embd",
    ),
    WrongFile(
        "dropout_in_evaluation",
        "dropout-in-evaluation",
        "config.dropout = 0.5",
        "F.dropout(F.softmax(att, dim=-1), self.dropout, self.training)",
        "F.dropout(F.softmax(att, dim=-1), self.dropout)",
        file="mask_buffer.py",
    ),
    WrongFile(
        "dropout_of_its_own",
        "dropout-fixed-rate",
        "in training with dropout 0.0",
        "self.resid_dropout = nn.Dropout(config.dropout)",
        "self.resid_dropout = nn.Dropout(0.1)",
    ),
    WrongFile(
        "input_scaled_in_place",
        "input-changed",
        "at token 0 by up to",
        "q = self.query(x)",
        "x.mul_(1.5)\n        q = self.query(x)",
    ),
    WrongFile(
        "not_written_yet",
        "not-implemented",
        "line 36 of",
        SOFTMAX,
        "raise NotImplementedError('softmax')",
    ),
    WrongFile(
        "blank_constructor",
        "not-implemented",
        "building the module",
        "self.n_head = config.n_head",
        "raise NotImplementedError",
    ),
    WrongFile(
        "no_return",
        "returns-nothing",
        "forward on x of shape (2, 5, 24) returned None",
        "return self.c_proj(y)",
        "self.c_proj(y)",
    ),
    WrongFile(
        "detached",
        "no-gradient",
        "the output, (2, 5, 24), has no gradient",
        "return self.c_proj(y)",
        "return self.c_proj(y).detach()",
    ),
    WrongFile(
        "weights_detached",
        "no-gradient",
        "`query.weight`",
        "y = torch.bmm(weights, v)",
        "y = torch.bmm(weights.detach(), v)",
    ),
    WrongFile(
        "value_of_detached",
        "wrong-gradient",
        "its gradient at x differs",
        "v = self.value(x)",
        "v = self.value(x.detach())",
    ),
    WrongFile(
        "float64_mask",
        "raises",
        "but found Float",
        "self.mask[:T, :T]",
        "self.mask[:T, :T].double()",
        file="mask_buffer.py",
    ),
    WrongFile(
        "float32_output",
        "output-dtype",
        "output is torch.float32",
        "return self.c_proj(y)",
        "return self.c_proj(y).float()",
    ),
    WrongFile(
        "unknown_config",
        "raises",
        "config has no `n_haed`; did you mean `n_head`?",
        "self.n_head = config.n_head",
        "self.n_head = config.n_haed",
    ),
    WrongFile("one_length", "raises", "line 2", "B, T, C = x.shape", "B, T, C = x.shape[0], 5, 24"),
    WrongFile(
        "sequences_mixed",
        "sequences-mixed",
        "another sequence of the batch",
        "return self.c_proj(y)",
        "return self.c_proj(y + y.roll(1, 0))",
    ),
    WrongFile("no_forward", "no-forward", "no method `forward`", "def forward(", "def foward("),
    WrongFile(
        "state_between_calls",
        "state-between-calls",
        "two calls with the same x differ",
        "return self.c_proj(y)",
        "self.n = getattr(self, 'n', 0) + 1\n        return self.c_proj(y) * self.n",
    ),
    WrongFile("exit", "crash", "exit code 0", "q = self.query(x)", "import os; os._exit(0)"),
    WrongFile(
        "bad_memory", "crash", "SIGSEGV", "q = self.query(x)", "import ctypes; ctypes.string_at(0)"
    ),
    WrongFile(
        "huge", "raises", "can't allocate memory", "q = self.query(x)", "q = torch.zeros(1 << 40)"
    ),
    WrongFile(
        "endless",
        "time-limit",
        "at line 24 of endless.py, `while True:",
        "q = self.query(x)",
        "while True: pass",
    ),
    WrongFile("waits_for_input", "raises", "EOFError", "q = self.query(x)", "input()"),
)
