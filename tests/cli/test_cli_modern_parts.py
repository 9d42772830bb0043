"""`gptcli train` with the RMSNorm and the attention of the exercise `modern`, and its errors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gptcli.api.user_files import UserFiles, load_user_parts
from gptcli.config import ModelConfig
from gptcli.course.examination import examine
from gptcli.course.exercises.modern_modules import modern_config
from gptcli.course.sandbox.modern_file import find_part, right_enough
from gptcli.errors import GptcliError
from tests.cli.test_cli_user_files import SMALL
from tests.course.modern_files import BASE, LLAMA


@pytest.mark.slow
def test_both_parts_train_resume_and_sample(
    text_file: Path,
    tmp_path: Path,
    cli,  # type: ignore[no-untyped-def]
) -> None:
    path = tmp_path / "modern.py"
    path.write_text(LLAMA, encoding="utf-8")
    files = ("--layernorm", path, "--attention", path)
    run = tmp_path / "run"
    outcome = cli("train", "course", f"data.source={text_file}", *SMALL, "--out", run, *files)
    assert outcome.code == 0, outcome.err
    again = ("train", "--resume", "--extend", "--out", run, "train.max_steps=8", "--json")
    # Without the options for the user's files, --resume fails: gptcli runs a user's file only if
    # the command line names it.
    assert cli(*again).code == 2
    outcome = cli(*again, *files)
    assert outcome.code == 0, outcome.err
    trained = json.loads(outcome.out)
    assert trained["steps"] == 8
    outcome = cli("eval", run, *files, "--json")
    assert json.loads(outcome.out)["loss"] == pytest.approx(trained["val_loss"], rel=1e-5)
    outcome = cli("sample", run, *files, "--max-new-tokens", "5", "--seed", "1")
    assert outcome.code == 0, outcome.err


@pytest.mark.slow
def test_the_norm_needs_step_1_and_the_attention_all_steps(
    text_file: Path,
    tmp_path: Path,
    cli,  # type: ignore[no-untyped-def]
) -> None:
    path = tmp_path / "modern.py"
    path.write_text(BASE.replace("repeat_interleave(group, dim=1)", "repeat(1, group, 1, 1)"))
    norm = find_part(str(path), "layernorm")
    report = examine(norm, lambda doing: None)
    assert report.first_wrong_step == 5
    assert right_enough(norm, "layernorm", report)
    assert not right_enough(find_part(str(path), "attention"), "attention", report)
    outcome = cli("train", "course", f"data.source={text_file}", *SMALL, "--attention", path)
    assert outcome.code == 1
    assert "you repeat the 2 key/value heads in turn" in outcome.err
    assert "hint: see gptcli check-modern" in outcome.err


@pytest.mark.parametrize(("part", "usual", "modern"), [
    ("layernorm", "LayerNorm", "RMSNorm"),
    ("attention", "CausalSelfAttention", "GroupedQueryAttention"),
])  # fmt: skip
def test_a_file_with_neither_class_is_told_both_names(
    part: str, usual: str, modern: str, tmp_path: Path
) -> None:
    path = tmp_path / "mine.py"
    path.write_text("def f():\n    pass\n", encoding="utf-8")
    with pytest.raises(GptcliError, match=f"there is no class `{usual}` or `{modern}`") as caught:
        load_user_parts(UserFiles(**{part: str(path)}))
    assert f"--{part} takes a class `{usual}`, or `{modern}`" in caught.value.hint


def test_a_file_with_the_usual_class_keeps_its_exercise(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    both = "import torch\nclass RMSNorm(torch.nn.Module): ...\nclass LayerNorm(RMSNorm): ...\n"
    path.write_text(both, encoding="utf-8")
    assert find_part(str(path), "layernorm").exercise == "layernorm"
    assert find_part(f"{path}:RMSNorm", "layernorm").exercise == "modern"
    assert find_part(f"{path}:LayerNorm", "layernorm").exercise == "layernorm"


@pytest.mark.parametrize(("n_head", "n_kv_head"), [(1, 1), (2, 1), (3, 1), (8, 4)])
def test_two_query_heads_share_one_in_training(n_head: int, n_kv_head: int) -> None:
    config = ModelConfig(n_head=n_head, n_embd=24 * n_head, arch="gpt2")
    assert modern_config(config).n_kv_head == n_kv_head
    assert modern_config(config).rms_norm_eps == 1e-6
