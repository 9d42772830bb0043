"""`gptcli.load`, and the Model that it returns: generated texts, scores, logits."""

from __future__ import annotations

import json
import math
import shutil
import threading
import xml.etree.ElementTree as ET
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import gptcli
from gptcli.course.report import FileReport
from gptcli.course.verdict import Verdict
from gptcli.native import library

OLD = Path(__file__).parent.parent / "old_runs"


@pytest.fixture(params=["native", "torch"])
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of the engine that samples.

    Each test that uses this fixture runs once with each of the two engines for a CPU."""
    name: str = request.param
    if name == "torch":
        none = library.Found(None, "the test wants PyTorch")
        monkeypatch.setattr(library, "find", lambda source: none)
    elif library.find(library.SAMPLING).library is None:
        pytest.skip("no C library here")
    return name


@pytest.fixture(scope="module")
def model(trained: Path) -> gptcli.Model:
    return gptcli.load(trained)


def sampled(cli: Any, *words: object) -> list[str]:
    outcome = cli("sample", *words, "--json")
    assert outcome.code == 0, outcome.err
    return [json.loads(line)["text"] for line in outcome.out.splitlines()]


CHOICES = (
    {},
    {"temperature": 0.0},
    {"temperature": 1.1, "top_k": 5},
    {"top_p": 0.9, "min_p": 0.02},
    {"repetition_penalty": 1.3},
)


@pytest.mark.parametrize(
    "run",
    [
        "trained",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("gpt2-bpe-adamw", "modern-byte-adamw")),
    ],
)
def test_the_text_is_that_of_the_command(run: str, engine: str, trained: Path, cli: Any) -> None:
    path = trained if run == "trained" else OLD / run / "run"
    model = gptcli.load(path)
    assert model._loaded.backend.engine == engine
    for choices in CHOICES if run == "trained" else CHOICES[:1]:
        options = [word for name, value in choices.items()
                   for word in (f"--{name.replace('_', '-')}", value)]  # fmt: skip
        words = (path, "--prompt", "KING", "--seed", 7, "-n", 40, *options)
        text = model.generate("KING", seed=7, max_new_tokens=40, **choices)
        assert [text] == sampled(cli, *words)
        assert "".join(model.stream("KING", seed=7, max_new_tokens=40, **choices)) == text
    several = model.generate("KING", seed=7, max_new_tokens=10, n=3)
    assert several == sampled(cli, path, "-p", "KING", "--seed", 7, "-n", 10, "--num-samples", 3)
    assert model.generate(["KING", "F"], seed=7, max_new_tokens=10, n=3)[:3] == several


def test_without_choices_the_defaults_are_those_of_the_command(
    model: gptcli.Model, cli: Any
) -> None:
    (text,) = sampled(cli, model.run, "--seed", 3)
    assert model.generate(seed=3) == text
    assert len(model.tokenizer.encode(text)) == 500
    assert model.generate(max_new_tokens=50) != model.generate(max_new_tokens=50)


def test_pieces_are_whole_characters_and_stop_strings_never_show() -> None:
    """This model has a byte tokenizer, so some characters consist of several tokens. Still, each
    piece of the text holds only whole characters."""
    model = gptcli.load(OLD / "modern-byte-adamw" / "run")
    pieces = list(model.stream("K", max_new_tokens=200, temperature=3.0, seed=1))
    text = "".join(pieces)
    assert min(map(len, pieces)) > 0
    assert any(ord(character) > 127 for character in text)
    assert "\ufffd" not in text[:-1]
    assert text == model.generate("K", max_new_tokens=200, temperature=3.0, seed=1)
    stop = text[len(text) // 2 :][:2]
    assert len(stop) == 2
    cut = "".join(model.stream("K", max_new_tokens=200, temperature=3.0, seed=1, stop=stop))
    assert cut == text[: text.index(stop)]
    assert model.generate("K", max_new_tokens=200, temperature=3.0, seed=1, stop=[stop]) == cut


@pytest.mark.parametrize("dtype", ["auto", "int8"])
def test_scores_are_those_of_the_command(
    dtype: str, trained: Path, cli: Any, tmp_path: Path
) -> None:
    if dtype == "int8" and library.find(library.SAMPLING).library is None:
        pytest.skip("no C library here")
    text = "KING:\nWhat light is this, that sings by night?\n"
    (tmp_path / "text.txt").write_text(text, encoding="utf-8", newline="\n")
    outcome = cli("score", trained, tmp_path / "text.txt", "--dtype", dtype, "--json")
    assert outcome.code == 0, outcome.err
    expected = json.loads(outcome.out)
    score = gptcli.load(trained, dtype=dtype).score(text)
    assert score.log_probabilities == [one["log_probability"] for one in expected["scores"]]
    assert score.ids == [one["id"] for one in expected["scores"]]
    assert score.texts == [one["text"] for one in expected["scores"]]
    for name in ("loss", "perplexity", "bits_per_byte", "log_probability"):
        assert getattr(score, name) == expected[name]
    assert (len(score), score.text) == (expected["tokens"], text)
    assert score.summary() in outcome_of_lines(cli, trained, tmp_path, dtype)
    assert repr(score) == f"<Score: {score.summary()}>"


def outcome_of_lines(cli: Any, trained: Path, folder: Path, dtype: str) -> str:
    error: str = cli("score", trained, folder / "text.txt", "--dtype", dtype).err
    return error


def test_logits_give_the_scores(model: gptcli.Model) -> None:
    """The logits at a position give the log-probability of the next token. `start_ids` come before
    the text, so the logits at the last of them give the log-probability of the first token."""
    text = "KING:\nWhat light is"
    logits = model.logits(text)
    ids = model.tokenizer.encode(text)
    assert (logits.dtype, tuple(logits.shape)) == (
        torch.float32, (len(ids), model.tokenizer.vocab_size),
    )  # fmt: skip
    assert not logits.requires_grad
    start = model.tokenizer.start_ids()
    whole = torch.log_softmax(model.logits([*start, *ids[:-1]]), -1)
    found = whole[len(start) - 1 :].gather(-1, torch.tensor(ids)[:, None])[:, 0]
    assert torch.allclose(found, torch.tensor(model.score(text).log_probabilities), atol=1e-5)
    batch = model.logits([ids[:4], ids[4:8]])
    assert batch.shape == (2, 4, model.tokenizer.vocab_size)
    assert torch.allclose(batch[0], logits[:4], atol=1e-5)
    assert torch.equal(model.logits(torch.tensor(ids)), logits)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda m: m.generate(temperature=-0.5), "temperature must be 0 or more; got -0.5"),
        (lambda m: m.generate(temperature=math.nan), "temperature must be a finite number"),
        (lambda m: m.generate(top_p=1.5), "top_p must be 0 to 1; got 1.5"),
        (lambda m: m.generate(top_k=0), "top_k must be a whole number, 1 or more; got 0"),
        (lambda m: m.generate(max_new_tokens=2.5), "max_new_tokens must be a whole number"),
        (lambda m: m.generate(max_new_tokens=None), "max_new_tokens must be a whole number, 0 or"),
        (lambda m: m.stream(max_new_tokens=None), "max_new_tokens must be a whole number, 0 or"),
        (lambda m: m.generate(temperature=10**400), "temperature must be a finite number"),
        (lambda m: m.generate(stop=None), "stop must be a text or a list of texts; got None"),
        (lambda m: m.stream(stop=3), "stop must be a text or a list of texts; got 3"),
        (lambda m: m.generate(stop=["a", b"b"]), "stop must be a text or a list of texts; got ["),
        (lambda m: gptcli.load(3), "run must be a text or a path; got int"),
        (lambda m: gptcli.load(m.run, mlp=b"x"), "mlp must be a text or a path; got bytes"),
        (lambda m: gptcli.load(m.run, threads="2"), "threads must be a whole number, 1 or more"),
        (lambda m: gptcli.load(m.run, threads=0), "threads must be a whole number, 1 or more"),
        (lambda m: gptcli.check("x.py", 3), "there is no exercise `3`"),
        (lambda m: gptcli.check("x.py").hint(None), "the level of a hint must be a whole number"),
        (lambda m: m.generate(seed=-1), "seed must be a whole number, 0 or more; got -1"),
        (lambda m: m.generate(repetition_penalty=0.0), "repetition_penalty must be 0.01 to 100"),
        (lambda m: m.generate(stop=""), "stop takes a text of at least one character"),
        (lambda m: m.generate(n=0), "n must be 1 to 100,000; got 0"),
        (lambda m: m.generate(7), "a prompt must be a text; got int"),
        (lambda m: m.generate(["K", "\u00e9"]), "prompt 2: the character"),
        (lambda m: m.stream("\u00e9"), "the character"),
        (lambda m: m.stream(top_k=0), "top_k must be a whole number"),
        (lambda m: m.score(""), "the text has no tokens"),
        (lambda m: m.score(b"K"), "the text must be a text; got bytes"),
        (lambda m: m.logits([]), "ids must be whole numbers, (T,) or (B, T); got (0,)"),
        (lambda m: m.logits([[1], [2, 3]]), "in rows of the same length"),
        (lambda m: m.logits([0.5]), "ids must be whole numbers, (T,) or (B, T); got (1,) of float"),
        (lambda m: m.logits([0] * 33), "33 tokens are more than the context length of 32"),
        (lambda m: m.logits([10_000]), "token id 10000 is outside the vocabulary"),
        (lambda m: m.logits([-1]), "token id -1 is outside the vocabulary"),
    ],
)
def test_a_wrong_value_is_an_error(call: Any, words: str, model: gptcli.Model) -> None:
    with pytest.raises(gptcli.GptcliError) as caught:
        call(model)
    assert words in caught.value.message
    assert caught.value.hint


def test_other_types_of_the_same_value(model: gptcli.Model) -> None:
    """NumPy's whole numbers and any iterable of stop strings mean what Python's own types mean."""
    text = model.generate("KING", seed=3, max_new_tokens=40)
    assert model.generate("KING", seed=np.int64(3), max_new_tokens=np.int64(40)) == text
    stops = [text[5:7], text[8:10]]
    cut = model.generate("KING", seed=3, max_new_tokens=40, stop=stops)
    assert cut == model.generate("KING", seed=3, max_new_tokens=40, stop=(s for s in stops))
    assert len(cut) < len(text)
    assert gptcli.load(model.run, tokenizer=None, threads=np.int64(1)).run == model.run


def minutes_of(minutes: Any) -> object:
    """The time limit that `gptcli.train` plans with. The training does not begin."""
    wanted = gptcli.train("tiny", minutes=minutes)._job._wanted  # type: ignore[attr-defined]
    assert type(wanted.minutes) is float
    return wanted.minutes


def layers_of(**arguments: Any) -> object:
    wanted = gptcli.train(**arguments)._job._wanted  # type: ignore[attr-defined]
    return wanted.config.model.n_layer


def hint_of(level: Any) -> object:
    report = FileReport("x.py", "attention", "X", False, "wrong", hints=("a", "b", "c"))
    return Verdict(report).hint(level)


def generated(model: gptcli.Model, **arguments: Any) -> list[str]:
    """What `generate` and `stream` return. Both must agree."""
    arguments = {"max_new_tokens": 8, "seed": 3, **arguments}
    text = model.generate("KING", **arguments)
    assert "".join(model.stream("KING", **arguments)) == text
    return [text]


WHOLE = {
    "max_new_tokens": lambda m, value: generated(m, max_new_tokens=value),
    "top_k": lambda m, value: generated(m, top_k=value),
    "seed": lambda m, value: generated(m, seed=value),
    "n": lambda m, value: m.generate("KING", n=value, max_new_tokens=8, seed=3),
    "threads": lambda m, value: generated(gptcli.load(m.run, threads=value)),
    "level": lambda m, value: hint_of(value),
    "decode": lambda m, value: m.tokenizer.decode([value]),
}
REAL = {
    "temperature": lambda m, value: generated(m, temperature=value),
    "top_p": lambda m, value: generated(m, top_p=value),
    "min_p": lambda m, value: generated(m, min_p=value),
    "repetition_penalty": lambda m, value: generated(m, repetition_penalty=value),
    "minutes": lambda m, value: minutes_of(value),
}


@pytest.mark.parametrize(
    ("call", "value", "given"),
    [
        *(
            pytest.param(call, 2, given, id=f"{name}-{given!r}")
            for name, call in WHOLE.items()
            for given in (np.int64(2), np.uint16(2), np.array(2), torch.tensor(2))
        ),
        *(
            pytest.param(call, 0.5, given, id=f"{name}-{given!r}")
            for name, call in REAL.items()
            for given in (np.float32(0.5), np.array(0.5), torch.tensor(0.5), Fraction(1, 2))
        ),
        *(
            pytest.param(call, 1, given, id=f"{name}-{given!r}")
            for name, call in REAL.items()
            for given in (np.int64(1), torch.tensor(1))
        ),
    ],
)
def test_a_number_of_another_package(
    call: Any, value: float, given: Any, model: gptcli.Model
) -> None:
    """A scalar of NumPy or PyTorch means what Python's number means, and keeps its value."""
    assert call(model, given) == call(model, value)
    assert given == value


@pytest.mark.parametrize("wrong", [True, np.bool_(True), torch.tensor(True), "1", b"1", 1j, [1]])
@pytest.mark.parametrize("name", [name for name in (*WHOLE, *REAL) if name != "decode"])
def test_what_is_no_number_is_an_error(name: str, wrong: Any, model: gptcli.Model) -> None:
    with pytest.raises(gptcli.GptcliError, match=f"{name}.* must be "):
        (WHOLE | REAL)[name](model, wrong)


def test_other_forms_of_numbers(model: gptcli.Model) -> None:
    """Token ids of each integer dtype, a checkpoint's step, and the values of a config."""
    ids = model.tokenizer.encode("KING")
    logits = model.logits(ids)
    for same in (
        model.tokenizer.encode_array("KING"), np.array(ids, np.uint64), [np.int64(i) for i in ids],
    ):  # fmt: skip
        assert torch.equal(model.logits(same), logits)
    for wrong in ([1.5], [None], ["a"], torch.tensor([[1, 2]])):
        with pytest.raises(gptcli.GptcliError, match="a token id must be a whole number"):
            model.tokenizer.decode(wrong)
    for step in (np.int64(40), torch.tensor(40)):
        assert gptcli.load(model.run, checkpoint=step).step == 40
    for layers in (np.int64(2), torch.tensor(2)):
        assert layers_of(config="tiny", overrides={"model.n_layer": layers}) == 2
        assert layers_of(config={"model": {"n_layer": layers}}) == 2


def test_nothing_to_generate(model: gptcli.Model) -> None:
    assert model.generate([], n=3) == []
    assert model.generate("KING", max_new_tokens=0) == ""
    assert list(model.stream("KING", max_new_tokens=0)) == []


# ---- loading -------------------------------------------------------------------------------------


def test_a_run_is_found_as_the_command_finds_it(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("old", "new"):
        shutil.copytree(trained, f"runs/{name}")
    status = json.loads(Path("runs/new/run.json").read_text("utf-8"))
    status["began_at"] = "2090-01-01T00:00:00+00:00"
    Path("runs/new/run.json").write_text(json.dumps(status), encoding="utf-8")
    assert gptcli.load().run == Path("runs/new")
    assert gptcli.load("old").run == Path("runs/old")
    assert gptcli.load(Path("runs/old")).run == Path("runs/old")
    assert gptcli.load("old", checkpoint="last").step == 40
    assert gptcli.load("old", checkpoint=40).step == 40
    with pytest.raises(gptcli.GptcliError, match="no checkpoint `41`"):
        gptcli.load("old", checkpoint=41)
    with pytest.raises(gptcli.GptcliError, match="device `gpu` is not known"):
        gptcli.load("old", device="gpu")
    with pytest.raises(gptcli.GptcliError, match="no run named `odl`") as caught:
        gptcli.load("odl")
    assert caught.value.hint == "did you mean `old`?"


def test_facts_of_a_model(model: gptcli.Model, trained: Path) -> None:
    status = json.loads((trained / "run.json").read_text("utf-8"))
    assert (model.run, model.step) == (trained, status["best_step"])
    assert model.val_loss == status["best_val_loss"]
    assert model.parameters == status["parameters"]
    assert model.config.model.n_embd == 32
    assert model.tokenizer.decode(model.tokenizer.encode("KING")) == "KING"
    assert isinstance(model.module, torch.nn.Module)
    assert not model.module.training
    assert repr(model) == (
        f"<Model {trained}: {model.parameters:,} parameters, modern, char tokens, step "
        f"{model.step}, val loss {model.val_loss:.4f}; {model.dtype} on cpu>"
    )


def test_a_note_is_a_warning(trained: Path, tmp_path: Path) -> None:
    """If a checkpoint is damaged, gptcli loads another one, and says so in a Python warning."""
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    best = (run / "checkpoints" / "best").read_text("utf-8").strip()
    weights = run / "checkpoints" / best / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.warns(UserWarning, match=r"^") as caught:
        model = gptcli.load(run)
    assert best in str(caught[0].message)
    assert {warning.filename for warning in caught} == {__file__}
    assert model.step == 20


def test_another_programs_folder_is_loaded_like_a_run(trained: Path, tmp_path: Path) -> None:
    from gptcli.interop import hugging_face
    from gptcli.training.loading import load_trained

    run = load_trained(trained, None, device=torch.device("cpu"), dtype=torch.float32)
    (tmp_path / "hf").mkdir()
    hugging_face.write_folder(run, tmp_path / "hf")
    found, ours = gptcli.load(tmp_path / "hf"), gptcli.load(trained)
    words = {"max_new_tokens": 40, "seed": 3}
    assert found.generate("KING", **words) == ours.generate("KING", **words)
    assert torch.equal(found.logits("What"), ours.logits("What"))
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(gptcli.GptcliError, match="`model_type` is None"):
        gptcli.load(tmp_path)


def test_users_parts_are_named_again() -> None:
    run = OLD / "gpt2-user-parts" / "run"
    with pytest.raises(gptcli.GptcliError, match="was trained with your attention"):
        gptcli.load(run)


def test_a_model_writes_in_any_thread(model: gptcli.Model) -> None:
    expected = model.generate("KING", seed=5, max_new_tokens=40)
    found: list[str] = []

    def write() -> None:
        found.append(model.generate("KING", seed=5, max_new_tokens=40))

    threads = [threading.Thread(target=write) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 3


def test_the_library_prints_nothing(trained: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = gptcli.load(trained)
    model.generate("KING", max_new_tokens=5)
    model.score("KING")
    assert capfd.readouterr() == ("", "")


# ---- what a notebook shows -----------------------------------------------------------------------


def as_xml(page: str) -> ET.Element:
    return ET.fromstring(page)  # this raises an error if a tag is not closed or an & is not escaped


def test_the_page_of_a_model(model: gptcli.Model) -> None:
    page = model._repr_html_()
    root = as_xml(page)
    text = "".join(root.itertext())
    assert f"{model.parameters:,} parameters" in text
    assert model.generate(max_new_tokens=200, seed=0) in text
    curve = root.find(".//{http://www.w3.org/2000/svg}polyline")
    assert curve is not None
    assert len(curve.attrib["points"].split()) > 1


def test_the_page_of_a_score(model: gptcli.Model) -> None:
    text = "KING:\nWhat light"
    score = model.score(text)
    spans = list(as_xml(score._repr_html_()).iter("span"))
    assert "".join(span.text or "" for span in spans) == text
    shades = {span.attrib["style"] for span in spans}
    assert len(shades) > 1
    likely = max(range(len(score)), key=lambda i: score.log_probabilities[i])
    shown = float(spans[likely].attrib["title"])
    assert shown == pytest.approx(math.exp(score.log_probabilities[likely]), rel=0.01)
