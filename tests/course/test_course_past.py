"""check-cache also checks an attention without a cache class.

Such an attention takes and returns the earlier keys and values, or stores them itself.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from gptcli.course.examination import examine
from gptcli.course.exercises.past_mistakes import BANK, MISTAKES
from gptcli.course.exercises.questions import QUESTIONS
from gptcli.course.report import FileReport
from gptcli.course.sandbox.learner_file import find_file
from tests.course import past_files, past_unseen

RIGHT = {**past_files.RIGHT, **past_unseen.RIGHT}
WRONG = [
    (entry, files.wrong_text(entry)) for files in (past_files, past_unseen) for entry in files.WRONG
]


def report_of(folder: Path, text: str) -> FileReport:
    path = folder / "cache.py"
    path.write_text(text, encoding="utf-8")
    return examine(find_file(str(path), "cache"), lambda doing: None)


@pytest.mark.long_series
@pytest.mark.parametrize("name", RIGHT, ids=lambda name: name.replace(" ", "-"))
def test_right_ones_are_accepted(name: str, tmp_path: Path) -> None:
    report = report_of(tmp_path, RIGHT[name])
    assert report.ok, report.message
    assert next(check.name for check in report.checks if check.note) == "form"


@pytest.mark.long_series
@pytest.mark.parametrize(
    ("entry", "text"), WRONG, ids=[entry[0].replace(" ", "-") for entry, _ in WRONG]
)
def test_wrong_ones_get_their_step(entry: tuple[str, ...], text: str, tmp_path: Path) -> None:
    report = report_of(tmp_path, text)
    assert not report.ok
    assert str(report.first_wrong_step) == entry[1], report.message
    assert len(set(report.hints)) == 3
    assert re.search(r"cache\.py, `.+`", report.message), report.message


def test_dropout_in_evaluation_is_found_before_outputs_are_compared(tmp_path: Path) -> None:
    name = next(name for name in past_files.RIGHT if "return self.c_proj(" in RIGHT[name])
    text = re.sub(r"return self\.c_proj\((\w+)\)", r"return F.dropout(self.c_proj(\1), 0.1)",
                  RIGHT[name])  # fmt: skip
    assert text != RIGHT[name]
    report = report_of(tmp_path, text)
    assert (report.mistake, report.first_wrong_step) == ("dropout-in-evaluation", 6), report.message


def test_every_mistake_has_a_question() -> None:
    assert {mistake.slug for mistake in BANK} <= set(QUESTIONS["cache"])
    assert len({mistake.slug for mistake in MISTAKES}) == len(MISTAKES)


def test_questions_and_texts_fit_a_file_without_a_cache_class() -> None:
    """Such a file has no `append`."""
    # Only a file with a cache class can have the mistake `returns-more`.
    slugs = {mistake.slug for mistake in BANK} - {"returns-more"}
    texts = [QUESTIONS["cache"][slug] for slug in slugs]
    texts += [t for m in BANK if m.slug in slugs for t in (m.message, m.why, m.hint)]
    assert [text for text in texts if "append" in text] == []


def test_the_shape_of_values_is_that_of_the_values(tmp_path: Path) -> None:
    text, old = RIGHT["chapter"], "torch.cat([self.cache_v, values_new], dim=1)"
    assert old in text
    text = text.replace(old, "torch.cat([self.cache_v * 0, values_new], dim=1)[:, :, :, :]")
    text = text.replace(
        "keys, values = self.cache_k, self.cache_v",
        "keys, values = self.cache_k, self.cache_v\n            "
        "self.cache_v = self.cache_v.transpose(1, 2)[:, :, -num_tokens:].transpose(1, 2)",
    )
    report = report_of(tmp_path, text)
    assert (report.mistake, report.first_wrong_step) == ("values-not-stored", 1), report.message
    assert "(shape (2, 2, 3, 6))" in report.message


POSITIONAL = ("mingpt", "layer_past=None):", "layer_past=None, /):")


def test_the_past_can_be_positional_only(tmp_path: Path) -> None:
    name, old, new = POSITIONAL
    assert old in RIGHT[name]
    report = report_of(tmp_path, RIGHT[name].replace(old, new))
    assert report.ok, report.message


PART = (
    past_files.HEAD
    + """class KeyValueCache(nn.Module):
    def __init__(self):
        super().__init__()
        self.k = self.v = None

    def update(self, k, v):
        self.k = k if self.k is None else torch.cat((self.k, k), dim=2)
        self.v = v if self.v is None else torch.cat((self.v, v), dim=2)
        return self.k, self.v


class CausalSelfAttention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.n_head = config.n_head
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd, bias=config.bias)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.kv = KeyValueCache()

    def reset_cache(self):
        self.kv.k = self.kv.v = None

    def forward(self, x, use_cache=False):
        B, T, C = x.shape
        parts = self.c_attn(x).split(C, 2)
        q, k, v = (t.view(B, T, self.n_head, -1).transpose(1, 2) for t in parts)
        if use_cache:
            k, v = self.kv.update(k, v)
        S = k.shape[2]
        mask = torch.ones(T, S, dtype=torch.bool).tril(S - T)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.c_proj(y.transpose(1, 2).reshape(B, T, C))
"""
)


def test_a_module_cache_can_be_a_part_of_the_attention(tmp_path: Path) -> None:
    report = report_of(tmp_path, PART)
    assert report.ok, report.message
