"""The proof of a page: which answers of a page it accepts or refuses, what `gptcli page` prints,
and the page's story of the training."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gptcli.config import Config
from gptcli.errors import GptcliError
from gptcli.pages.chromium import find_chromium
from gptcli.pages.model_page import arithmetic, page, programs, proof
from gptcli.pages.model_page.payload import payload, rounded
from gptcli.pages.model_page.programs import Answer, Program, ProgramError, name_and_version
from gptcli.pages.model_page.story import (
    Story,
    _beginning,
    curve,
    data_name,
    how_it_learned,
    samples_of,
)
from tests.interop.models import shape
from tests.interop.models import trained as trained_model
from tests.pages import javascript

SIZES: dict[str, Any] = {"n_layer": 2, "n_head": 2, "n_embd": 16, "block_size": 12}


@pytest.fixture(autouse=True)
def _short_proofs(monkeypatch: pytest.MonkeyPatch, slow: bool) -> None:
    """Let proofs use fewer prompts and shorter texts, so that the tests are quick."""
    monkeypatch.setattr(proof, "PROMPTS", 64 if slow else 16)
    monkeypatch.setattr(proof, "GREEDY_TOKENS", 200 if slow else 30)


def chromium() -> Program:
    if path := find_chromium():
        return Program("Chromium", path, programs.ask_chromium)
    pytest.skip("neither Chromium nor Chrome is installed")


@pytest.mark.long_series
@pytest.mark.parametrize("arch", ["modern", "gpt2"])
@pytest.mark.parametrize("seed", [1, 2])
def test_numpy_proves_a_page(arch: str, seed: int, tmp_path: Path) -> None:
    model = trained_model(tmp_path / "run", "bpe", seed, **shape(seed, arch))
    text = payload(model.model, model.tokenizer)
    found = proof.prove(text, rounded(model.model), model.tokenizer, None)
    assert (found.how, found.program) == ("numpy", f"numpy {np.__version__}")
    assert found.largest_difference < 1e-4


@pytest.mark.parametrize("arch", ["modern", pytest.param("gpt2", marks=pytest.mark.slow)])
def test_node_proves_a_page(arch: str, tmp_path: Path) -> None:
    model = trained_model(tmp_path / "run", "byte", 3, arch=arch, **SIZES)
    text, program = payload(model.model, model.tokenizer), javascript.node()
    found = proof.prove(text, rounded(model.model), model.tokenizer, program)
    assert (found.how, found.program) == ("javascript", program.name)
    assert 0 < found.largest_difference < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["modern", "gpt2"])
def test_chromium_proves_a_page(arch: str, tmp_path: Path) -> None:
    model = trained_model(tmp_path / "run", "byte", 3, arch=arch, **SIZES)
    text = payload(model.model, model.tokenizer)
    found = proof.prove(text, rounded(model.model), model.tokenizer, chromium())
    assert (found.how, found.program) == ("javascript", "Chromium")
    assert found.largest_difference < 1e-4


def changed(answer: Answer, what: str) -> Answer:
    """A copy of a page's answer with a mistake in the token ids, logits or greedy tokens."""
    if what == "ids":
        return replace(answer, ids=[[0, 0], *answer.ids[1:]])
    if what == "logits":
        logits = answer.logits.copy()
        logits[3, 2] += 0.002
        return replace(answer, logits=logits)
    tokens = [row[:] for row in answer.tokens]
    tokens[2][9] = (tokens[2][9] + 1) % 20
    return replace(answer, tokens=tokens)


@pytest.mark.long_series
@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("ids", "gives other token ids for"),
        ("logits", "computes other logits: after a prompt of"),
        ("tokens", "writes another greedy text: token 10 is the first that differs"),
    ],
)
def test_a_page_that_differs_is_refused(what: str, message: str, tmp_path: Path) -> None:
    model = trained_model(tmp_path / "run", "char", 4, **SIZES)
    text = payload(model.model, model.tokenizer)

    def ask(path: str, payload: str, texts: Any, steps: int) -> Answer:
        return changed(arithmetic.ask(payload, texts, steps, model.tokenizer), what)

    with pytest.raises(GptcliError, match=message) as error:
        proof.prove(text, rounded(model.model), model.tokenizer, Program("Other", "other", ask))
    assert error.value.exit_code == 1


def test_other_weights_than_those_of_the_page_are_refused(tmp_path: Path) -> None:
    model = trained_model(tmp_path / "run", "char", 4, **SIZES)
    text = payload(model.model, model.tokenizer)
    with torch.no_grad():
        model.model.ln_f.weight[3] *= 1.01
    with pytest.raises(GptcliError, match="computes other logits"):
        proof.prove(text, rounded(model.model), model.tokenizer, None)


def test_a_program_that_fails_is_named(tmp_path: Path) -> None:
    model = trained_model(tmp_path / "run", "char", 4, **SIZES)
    program = javascript.node()
    with pytest.raises(ProgramError, match="exit code 1"):
        programs.ask_node(program.path, "no payload", ["a"], 1)
    broken = replace(program, path="/no/such/node")
    with pytest.raises(GptcliError, match=r"could not run the page's JavaScript: .*no/such/node"):
        proof.prove(payload(model.model, model.tokenizer), model.model, model.tokenizer, broken)


def test_an_old_node_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs.shutil, "which", lambda name: name if name == "node" else None)
    monkeypatch.setattr(programs, "_version", lambda path: "v16.20.0")
    assert programs.find_program() is None
    monkeypatch.setattr(programs, "_version", lambda path: "v18.0.0")
    found = programs.find_program()
    assert found is not None
    assert found.name == "Node.js 18.0.0"


def test_eight_bits_are_measured_in_nats_and_logits(tmp_path: Path) -> None:
    model = trained_model(tmp_path / "run", "char", 5, **SIZES)
    tokens = torch.randint(0, 20, (6, 13), generator=torch.Generator().manual_seed(1))
    same = proof.rounding_error(model.model, model.model, tokens)
    expected = model.model.loss(tokens[:, :-1], tokens[:, 1:]).item()
    assert (same.loss, same.logit, same.same_choice, same.tokens) == (same.rounded_loss, 0, 1, 72)
    assert same.loss == pytest.approx(expected)
    other = proof.rounding_error(model.model, rounded(model.model), tokens)
    assert 0 < other.logit < 0.1
    assert other.rounded_loss != other.loss
    assert 0.8 < other.same_choice <= 1


# ---- the command ---------------------------------------------------------------------------------


def test_the_command_writes_a_page_and_says_how_it_was_proven(
    cli: Any, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text_file: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(programs, "find_program", lambda: None)
    outcome = cli("page", trained)
    assert outcome.code == 0, outcome.err
    assert outcome.out.startswith("wrote small.html: ")
    assert "numpy" in outcome.out
    assert "Eight bits change the loss from" in outcome.out
    text = (tmp_path / "small.html").read_text("utf-8")
    assert str(trained) not in text
    assert str(tmp_path) not in text
    assert text_file.name in text
    assert "repeated this page&#x27;s arithmetic" in text
    for line in text_file.read_text("utf-8").splitlines():
        # No long line of the training text is in the page.
        assert len(line) < 12 or line not in text
    again = cli("page", trained)
    assert (again.code, "small.html exists already" in again.err) == (2, True)
    assert cli("page", trained, "--overwrite").code == 0
    told = json.loads(cli("page", trained, "--out", "other/page.html", "--json").out)
    assert (told["proven_by"], told["path"]) == ("numpy", "other/page.html")
    assert told["bytes"] == (tmp_path / "other" / "page.html").stat().st_size
    assert told["largest_difference"] < 1e-3
    assert abs(told["loss"] - told["rounded_loss"]) < 0.05
    assert not list(tmp_path.rglob(".*tmp"))


def test_the_page_of_the_moved_text_compares_on_a_text_of_the_model(tmp_path: Path) -> None:
    model = trained_model(tmp_path / "run", "bpe", 5, **SIZES)
    data = model.config.data.model_copy(update={"source": str(tmp_path / "moved.txt")})
    model = replace(model, config=model.config.model_copy(update={"data": data}))
    windows, what = page._windows(model)
    assert what.endswith("tokens that the model wrote")
    assert windows.shape[1] == SIZES["block_size"] + 1


def test_a_large_page_is_refused_and_a_middling_one_noted(
    cli: Any, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(programs, "find_program", lambda: None)
    monkeypatch.setattr(page, "LARGE", 1000)
    outcome = cli("page", trained, "--out", "a.html")
    assert outcome.code == 0
    assert "note: the page has 0.1 MB, which is large for a mail or a phone" in outcome.err
    monkeypatch.setattr(page, "TOO_LARGE", 1000)
    outcome = cli("page", trained, "--out", "b.html")
    assert outcome.code == 1
    assert "at most 0 MB are allowed" in outcome.err
    assert "gptcli export" in outcome.err
    assert not (tmp_path / "b.html").exists()


def test_a_run_with_the_users_attention_is_refused(
    cli: Any, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained, "own")
    status = json.loads(Path("own/run.json").read_text("utf-8"))
    Path("own/run.json").write_text(json.dumps({**status, "own_parts": ["attention"]}), "utf-8")
    outcome = cli("page", "own")
    assert outcome.code == 1
    assert "your own attention, which a page cannot run" in outcome.err
    assert not list(tmp_path.glob("*.html"))


# ---- the story -----------------------------------------------------------------------------------


def test_names_of_texts_have_no_folders() -> None:
    config = Config.model_validate(
        {"data": {"source": ["/home/me/a.txt", "b/c.txt", "shakespeare", "d", "e"]}}
    )
    assert data_name(config, {}) == "a.txt, c.txt, shakespeare and 2 more"


def test_samples_are_read_and_thinned(tmp_path: Path) -> None:
    lines = [f"=== step {step} ===\ntext {step}\n\n" for step in range(10, 310, 10)]
    (tmp_path / "samples.txt").write_text("".join(lines), encoding="utf-8")
    found = samples_of(tmp_path, 250)
    assert found[0] == (10, "text 10")
    assert found[-1] == (250, "text 250")
    assert len(found) == 12
    assert samples_of(tmp_path / "none", 250) == []


def story(train: list[tuple[int, float]], val: list[tuple[int, float]]) -> Story:
    return Story("a", "b", 1, [], train, val, [], "")


def test_the_page_says_with_which_weights_the_run_started() -> None:
    drawn = Story("a", "b.txt", 1, [], [], [], [], "")
    assert how_it_learned(drawn).startswith("At first, the numbers of the model were random. Then")
    tuned = replace(drawn, began=_beginning({"started_from": {"run": "/x/<base>", "step": 3}}))
    assert "had the numbers of the run &lt;base&gt;. Then" in how_it_learned(tuned)
    status = {"imported": {"from": "gpt2"}}
    imported = replace(drawn, began=_beginning(status), is_imported=True)
    assert "random" not in how_it_learned(imported)
    assert "Another program trained this model" in how_it_learned(imported)


def test_the_curve_has_both_losses_and_words() -> None:
    train = [(step, 4.0 / step**0.3) for step in range(1, 500)]
    svg = curve(story(train, [(250, 0.9), (499, 0.7)]))
    assert svg.count("<circle") == 2
    assert "On unseen text it is lowest, 0.70, at step 499." in svg
    assert "unseen text</text>" in svg
    assert "style=" not in svg  # the Content-Security-Policy of a page forbids style attributes
    # The first losses are above the top of the chart, so their value is written.
    assert "starts at 4.00</text>" in svg
    assert "starts at" not in curve(story([(1, 2.0), (2, 1.9), (3, 2.0)], []))
    assert curve(story(train[:1], [])) == ""
    assert "nan" not in curve(story([(1, 2.0), (2, 2.0)], []))


@pytest.mark.parametrize(
    ("printed", "shown"),
    [
        ("v20.20.2\n", "v20.20.2"),
        ("Chromium 131.0.6778 built on Debian", "Chromium 131.0.6778"),
        ("Google Chrome 131.0.6778.85 beta", "Google Chrome 131.0.6778.85"),
        ("", ""),
    ],
)
def test_the_version_of_a_browser_with_two_names(printed: str, shown: str) -> None:
    assert name_and_version(printed) == shown
