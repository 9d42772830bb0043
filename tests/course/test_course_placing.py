"""The check finds the first wrong step also in unusual files.

Such a file stops halfway, changes right values after it has computed them, or uses code that the
trace does not record.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from gptcli.course.report import FileReport
from tests.conftest import wanted
from tests.course.conftest import Judge

HERE = Path(__file__).parent / "files"
SCALE = "/ math.sqrt(self.head_dim)"
MASK = 'scores = scores.masked_fill(mask == 0, float("-inf"))'
SOFTMAX = "weights = F.softmax(scores, dim=-1)"
MIX = "y = torch.bmm(weights, v)"
MERGE = "y = y.transpose(1, 2).contiguous().view(B, T, C)"
LAST = "return self.c_proj(y)"
STOP = "raise NotImplementedError"
OUTPUT = "        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)\n"

# File name -> what the report must say (the step, the slug of the mistake, a part of the message),
# and how the file differs from course_style.py: pairs of a text and its replacement.
FILES: dict[str, tuple[int, str, str, list[tuple[str, str]]]] = {
    "wrong_scale_then_stop": (
        4, "scale-sqrt-n-embd", "later steps are still to be written",
        [(SCALE, "/ math.sqrt(C)"), (SOFTMAX, STOP + "('step 6: softmax')")],
    ),
    "multiplied_mask_then_stop": (
        5, "mask-filled-with-0", "later steps are still to be written",
        [(MASK, "scores = scores * mask"), (SOFTMAX, STOP + "('step 6: softmax')")],
    ),
    "no_mask_then_stop": (
        5, "not-implemented", "the numbers of step 5, causal mask, do not appear; later steps",
        [(MASK, ""), (SOFTMAX, STOP + "('step 6: softmax')")],
    ),
    "diagonal_hidden_then_stop": (
        5, "mask-hides-diagonal", "later steps are still to be written",
        [("torch.tril(torch.ones(T, T, device=x.device))",
          "torch.tril(torch.ones(T, T, device=x.device), -1)"), (SOFTMAX, STOP)],
    ),
    "names_swapped_then_stop": (
        1, "query-key-swapped", "your queries and keys are swapped",
        [("q = self.query(x)", "q = self.key(x)"), ("k = self.key(x)", "k = self.query(x)"),
         (SOFTMAX, STOP)],
    ),
    "no_output_layer_and_no_scale": (
        4, "scale-missing", "are not divided by anything",
        [(OUTPUT, ""), (SCALE, ""), (LAST, "return y")],
    ),
    "no_output_layer": (
        8, "missing-projection", "has no c_proj", [(OUTPUT, ""), (LAST, "return y")],
    ),
    "nothing_is_used": (
        1, "projections-unused", "without `query`, `key`, `value`",
        [("B, T, C = x.shape\n", "return self.c_proj(x)\n")],
    ),
    "scores_clamped": (
        4, "scores-changed", "the scaled scores are right until this line changes them",
        [(MASK, "scores = scores.clamp(-1, 1)\n        " + MASK)],
    ),
    "weights_scaled": (
        6, "weights-changed", "the rows of the first head now sum to 0.9",
        [(SOFTMAX, SOFTMAX + " * 0.9")],
    ),
    "values_added": (
        7, "values-changed", "the weighted values are right until this line changes them",
        [(MIX, MIX + " + v")],
    ),
    "bias_taken_away": (
        1, "projections-changed", "the projections are right until this line changes them",
        [("v = self.value(x)", "v = self.value(x) - 1.0")],
    ),
    "changed_in_place": (
        6, "changed-in-place", "the gradient needs the unchanged result of this line, but line 37",
        [(SOFTMAX, SOFTMAX + "\n        weights += 0")],
    ),
    "numpy_needs_no_gradient": (
        6, "raises", "Can't call numpy()",
        [(SOFTMAX, "weights = torch.from_numpy(F.softmax(scores, dim=-1).numpy())")],
    ),
    "detached_scores": (
        4, "no-gradient", "no gradient reaches", [(SCALE, SCALE + "\n        scores = "
                                                   "scores.detach()")],
    ),
    "no_super_init": (
        1, "no-super-init", "does not begin with super().__init__()",
        [("        super().__init__()\n", "        pass\n")] + [
            (line, "        pass\n") for line in (OUTPUT,)],
    ),
    "vmap_over_queries": (
        6, "softmax-over-queries", "softmax goes over the queries",
        [(SOFTMAX, "weights = torch.vmap(lambda s: F.softmax(s, dim=0))(scores)")],
    ),
    "compiled": (
        6, "softmax-over-queries", "softmax goes over the queries",
        [(SOFTMAX, "weights = torch.compile(lambda s: F.softmax(s, dim=1))(scores)")],
    ),
    "never_ends": (
        7, "time-limit", "still running after", [(MIX, "while True:\n            pass")],
    ),
    "ends_the_process": (
        7, "crash", "in step 7, weighted sum of the values",
        [(MIX, "__import__('os')._exit(3)")],
    ),
    "dropout_misspelt": (
        6, "raises", "no attribute 'dropout'",
        [("        if use_dropout:\n            weights = self.attn_dropout(weights)\n",
          "        weights = self.dropout(weights)\n")],
    ),
    "long_softmax": (
        6, "raises", "not implemented for 'Long'",
        [(SOFTMAX, "weights = F.softmax(scores.long(), dim=-1)")],
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def reports(judge: Judge, request: pytest.FixtureRequest) -> dict[str, FileReport]:
    texts = {}
    names = wanted(request, "name")
    base = (HERE / "course_style.py").read_text("utf-8")
    for name, (_, _, _, changes) in FILES.items():
        text = base
        for old, new in changes:
            assert old in text, f"{name}: {old!r}"
            text = text.replace(old, new, 1)
        if name in names:
            texts[f"{name}.py"] = text
    return {
        file.removesuffix(".py"): report
        for file, report in judge("placing", texts).items()
        if isinstance(report, FileReport)
    }


@pytest.mark.long_series
@pytest.mark.parametrize("name", FILES)
def test_first_wrong_step_and_mistake_are_reported(
    reports: dict[str, FileReport], name: str
) -> None:
    step, slug, says, _ = FILES[name]
    report = reports[name]
    assert not report.ok
    assert (report.first_wrong_step, report.mistake) == (step, slug), report.message
    assert says in report.message
    assert len(report.hints) == 3
    assert not any("{" in hint for hint in report.hints)
