"""An existing tokenizer on new texts: `--tokenizer`, `tokenizer.from` and `data.unknown`."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from gptcli.config import Config
from gptcli.errors import GptcliError
from gptcli.tokenization import load_tokenizer
from gptcli.training.named_tokenizer import follow_base_run

SMALL = ("model.n_layer=1", "model.n_head=2", "model.n_embd=16", "model.block_size=16",
         "train.batch_size=4", "train.max_steps=5", "train.eval_every=5", "run.threads=1",
         "run.dtype=float32", "run.engine=torch", "run.device=cpu")  # fmt: skip


@pytest.fixture
def pieces(cli: Any, tmp_path: Path, text_file: Path) -> Path:
    path = tmp_path / "pieces.json"
    outcome = cli("tokenizer", "train", text_file, "--vocab-size", 280, "--out", path)
    assert outcome.code == 0, outcome.err
    return path


@pytest.fixture
def accented(tmp_path: Path, text_file: Path) -> Path:
    path = tmp_path / "other.txt"
    path.write_text(text_file.read_text("utf-8") + "Qué light, é shadow ☂\n", encoding="utf-8")
    return path


def tokenizer_section(run: Path) -> dict[str, Any]:
    section: dict[str, Any] = yaml.safe_load((run / "config.yaml").read_text("utf-8"))["tokenizer"]
    return section


def train(cli: Any, out: Path, *words: object) -> Any:
    outcome = cli("train", *words, *SMALL, "--out", out)
    assert outcome.code == 0, outcome.err
    return outcome


@pytest.mark.parametrize("by", ["option", "key", "config"])
def test_a_new_run_uses_a_tokenizer_json(
    by: str, cli: Any, tmp_path: Path, text_file: Path, pieces: Path
) -> None:
    words: tuple[object, ...] = (text_file, "--tokenizer", pieces)
    if by == "key":
        words = (text_file, f"tokenizer.from={pieces}")
    elif by == "config":
        (tmp_path / "mine.yaml").write_text(f"tokenizer: {{from: {pieces}}}\n", encoding="utf-8")
        words = (tmp_path / "mine.yaml", f"data.source={text_file}")
    run = tmp_path / "run"
    train(cli, run, *words)
    assert (run / "tokenizer.json").read_text("utf-8") == pieces.read_text("utf-8")
    size = load_tokenizer(pieces).vocab_size
    assert tokenizer_section(run) == {"kind": "bpe", "vocab_size": size, "from": str(pieces)}


def test_a_run_keeps_its_own_copy(
    cli: Any, tmp_path: Path, text_file: Path, pieces: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, copy = tmp_path / "run", tmp_path / "copy.json"
    shutil.copy(pieces, copy)
    train(cli, run, text_file, "--tokenizer", pieces)
    pieces.unlink()
    monkeypatch.chdir(tmp_path)
    assert cli("sample", run, "--max-new-tokens", 3, "--seed", 1).code == 0
    assert cli("eval", run).code == 0
    for words in ((), ("--tokenizer", "pieces.json"), ("--tokenizer", copy)):
        outcome = cli("train", "--resume", "--extend", "--out", run, "train.max_steps=9", *words)
        assert outcome.code == 0, outcome.err
        shutil.rmtree(run / "checkpoints" / "step-00000009")
        (run / "config.yaml").write_text(
            (run / "config.yaml").read_text("utf-8").replace("max_steps: 9", "max_steps: 5"),
            encoding="utf-8",
        )
    copy.unlink()  # the run's config names this copy as its tokenizer
    outcome = cli("train", run / "config.yaml", "--out", tmp_path / "again")
    assert outcome.code == 2
    assert f"no run or file named `{copy}`" in outcome.err
    assert not (tmp_path / "again").exists()
    train(cli, tmp_path / "again", run / "config.yaml", f"tokenizer.from={run}")
    assert tokenizer_section(tmp_path / "again")["from"] == str(run)


def test_resume_refuses_another_tokenizer(
    cli: Any, tmp_path: Path, text_file: Path, pieces: Path, trained: Path
) -> None:
    run = tmp_path / "run"
    train(cli, run, text_file, "--tokenizer", pieces)
    outcome = cli("train", "--resume", "--extend", "train.max_steps=9", "--out", run,
                  "--tokenizer", trained)  # fmt: skip
    assert outcome.code == 2
    assert "was trained with another tokenizer" in outcome.err


def test_the_kind_of_a_run_is_followed_and_other_wishes_are_refused(
    cli: Any, tmp_path: Path, text_file: Path, pieces: Path, trained: Path
) -> None:
    run = tmp_path / "run"
    # The shipped config says `kind: char`, but the command line takes precedence.
    train(cli, run, "shakespeare", f"data.source={text_file}", "--tokenizer", pieces)
    assert tokenizer_section(run)["kind"] == "bpe"
    for words, message in (
        ((f"tokenizer.from={trained}", "tokenizer.kind=bpe"), "tokenizer.kind is bpe, but"),
        (("--tokenizer", pieces, "tokenizer.vocab_size=999"), "tokenizer.vocab_size is 999, but"),
        (("--tokenizer", pieces, f"tokenizer.from={trained}"), "cannot be used together"),
        (("--tokenizer", pieces, "--from", trained), "has another tokenizer"),
        (("--from", trained, "tokenizer.kind=byte"), "tokenizer.kind=byte would have no effect"),
        (
            ("--from", trained, f"tokenizer.from={trained}", "tokenizer.kind=byte"),
            "has char\n\nhint: leave tokenizer.kind out\n",
        ),
    ):
        sizes = SMALL[4:] if "--from" in words else SMALL
        outcome = cli("train", text_file, *sizes, *words, "--out", tmp_path / "no")
        assert outcome.code == 2, words
        assert message in outcome.err
        assert not (tmp_path / "no").exists()


def test_a_config_that_names_the_base_runs_tokenizer_but_another_kind(
    trained: Path,
) -> None:
    section = {"from": str(trained), "kind": "byte"}
    with pytest.raises(GptcliError, match="would have no effect") as refused:
        follow_base_run(Config.model_validate({"tokenizer": section}), trained)
    assert refused.value.hint == "leave tokenizer.kind out"
    section.pop("kind")
    follow_base_run(Config.model_validate({"tokenizer": section}), trained)


def test_a_fine_tune_needs_only_the_tokenizer_of_its_own_base_run(
    cli: Any, tmp_path: Path, text_file: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The plan for --minutes also uses this tokenizer. It does not read the file that the key
    tokenizer.from in the base run's config names."""
    base = tmp_path / "base"
    shutil.copytree(trained, base)
    config = yaml.safe_load((base / "config.yaml").read_text("utf-8"))
    config["tokenizer"]["from"] = str(tmp_path / "deleted")
    (base / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    opened: list[object] = []

    def open_text(_: Config, tokenizer: object, *more: object) -> None:
        opened.append(tokenizer)
        raise GptcliError("stopped here", "")

    monkeypatch.setattr("gptcli.training.minutes.open_text", open_text)
    outcome = cli("train", text_file, "--from", base, "--minutes", 1)
    assert "stopped here" in outcome.err
    (tokenizer,) = opened
    assert tokenizer is not None


def test_a_dry_run_allows_a_vocabulary_that_the_run_allows(
    cli: Any, text_file: Path, pieces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A BPE tokenizer can have fewer tokens than tokenizer.vocab_size allows."""
    run = tmp_path / "run"
    train(cli, run, text_file, "--tokenizer", pieces)
    monkeypatch.setattr("gptcli.training.dry_run.seconds_per_step", lambda *_: 0.01)
    words = ("tokenizer.kind=bpe", "tokenizer.vocab_size=50000", "--from", run, "--dry-run")
    outcome = cli("train", text_file, *words)
    assert outcome.code == 0, outcome.err


@pytest.mark.parametrize(
    ("name", "message", "hint"),
    [
        ("gpt2", "no run or file named `gpt2`", "tokenizer.kind=gpt2"),
        ("nosuch", "no run or file named `nosuch`", "a run, a run folder or a tokenizer.json"),
        ("~nobody/x.json", "no run or file named `~nobody/x.json`", "tokenizer.json"),
        ("nosuch.py", "there is no file nosuch.py", ".py"),
        (
            "text.txt",
            "text.txt is not a Python file: it is a text",
            "name a tokenizer.json, a run, or the .py file",
        ),
        ("bert.json", "it is a WordPiece tokenizer", "byte-level BPE"),
        ("list.json", "not a tokenizer", "undamaged copy"),
        ("empty", "empty has no tokenizer.json", "name a run"),
    ],
)
def test_what_is_no_tokenizer_is_refused(
    name: str, message: str, hint: str, cli: Any, tmp_path: Path, text_file: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.txt").write_text("To be, or not to be\n")
    (tmp_path / "bert.json").write_text('{"model": {"type": "WordPiece", "vocab": {"a": 0}}}')
    (tmp_path / "list.json").write_text("[1, null]")
    outcome = cli("train", text_file, *SMALL, "--tokenizer", name, "--out", "no")
    assert outcome.code == 2
    assert message in outcome.err
    assert hint in outcome.err.partition("hint:")[2]
    assert "Traceback" not in outcome.err
    assert not (tmp_path / "no").exists()


def test_a_folder_with_a_tokenizer_of_hugging_face(
    cli: Any, tmp_path: Path, text_file: Path, pieces: Path
) -> None:
    stored = json.loads(pieces.read_text("utf-8"))
    del stored["model"]["kind"]
    folder = tmp_path / "downloaded"
    folder.mkdir()
    (folder / "tokenizer.json").write_text(json.dumps(stored), encoding="utf-8")
    train(cli, tmp_path / "run", text_file, "--tokenizer", folder)
    assert cli("sample", tmp_path / "run", "--max-new-tokens", 3, "--seed", 1).code == 0
    shown = [cli("tokenizer", "encode", "What light", "--tokenizer", one).out
             for one in (folder, pieces, tmp_path / "run")]  # fmt: skip
    assert len(set(shown)) == 1


def test_other_commands_do_not_take_data_for_code(
    cli: Any, tmp_path: Path, text_file: Path, pieces: Path, trained: Path
) -> None:
    for words in (
        ("check-tokenizer", pieces),
        ("check-attention", pieces),
        ("train", "course", "--attention", pieces),
        ("train", text_file, "--mlp", pieces),
        ("check-layernorm", trained / "config.yaml"),
        ("check-block", text_file),
        ("check-training", next(trained.glob("checkpoints/*/model.safetensors"))),
    ):
        outcome = cli(*words)
        assert outcome.code == 2, words
        assert "is not a Python file" in outcome.err, outcome.err
    for command in ("sample", "eval"):
        outcome = cli(command, trained, "--tokenizer", pieces)
        assert outcome.code == 2
        assert "leave --tokenizer out: a run keeps a copy" in outcome.err
    program = tmp_path / "tokenizer.py"
    program.write_text("class Tokenizer: ...\n")
    outcome = cli("tokenizer", "encode", "x", "--tokenizer", program)
    assert outcome.code == 2
    assert "is Python code, not a tokenizer.json" in outcome.err


# ---- characters that the tokenizer does not know -------------------------------------------------


@pytest.mark.slow
def test_the_message_offers_what_works_and_it_works(
    cli: Any, tmp_path: Path, accented: Path, trained: Path
) -> None:
    outcome = cli("train", accented, "--from", trained, "--out", tmp_path / "no")
    assert outcome.code == 2
    assert (
        f"{accented} has 3 characters that this char tokenizer does not know: 'é' (U+00E9) 2 "
        "times, '☂' (U+2602) once"
    ) in outcome.err
    for way in ("data.unknown=drop", "data.unknown=replace", "tokenizer.kind=byte"):
        assert way in outcome.err
    assert not (tmp_path / "no").exists()
    for rule, verb in (("drop", "left out"), ("replace", "replaced")):
        words = ("--from", trained, f"data.unknown={rule}", "train.max_steps=3")
        run = tmp_path / rule
        outcome = cli("train", accented, *words, "--out", run)
        assert outcome.code == 0, outcome.err
        assert f"{verb} 3 characters" in outcome.err
        assert "'é' (U+00E9) 2 times, '☂' (U+2602) once" in outcome.err
        assert tokenizer_section(run)["from"] == str(trained)
        for command in (("eval", run), ("train", "--resume", "--out", run),
                        ("inspect-batch", run, 2)):  # fmt: skip
            assert cli(*command).code == 0
    train(cli, tmp_path / "byte", accented, "tokenizer.kind=byte")


def test_prompts_and_other_texts_follow_the_rule_of_the_run(
    cli: Any, tmp_path: Path, accented: Path, trained: Path
) -> None:
    run = tmp_path / "run"
    train(cli, run, accented, f"tokenizer.from={trained}", "data.unknown=replace")
    few = ("--max-new-tokens", 2, "--seed", 1, "--json")
    outcome = cli("sample", run, "--prompt", "é light", *few)
    assert json.loads(outcome.out)["prompt"] == "e light"
    assert "note: --prompt: replaced 1 character" in outcome.err
    (tmp_path / "lines.txt").write_text("What\né\n", encoding="utf-8")
    outcome = cli("sample", run, "--prompt-file", tmp_path / "lines.txt", "--prompt-lines", *few)
    assert "lines.txt:2: replaced 1 character" in outcome.err
    for words in (("score", run, accented), ("eval", run, "--file", accented)):
        outcome = cli(*words)
        assert outcome.code == 0, outcome.err
        assert "replaced 3 characters" in outcome.err
    for words in (("score", trained, accented), ("eval", trained, "--file", accented),
                  ("sample", trained, "--prompt", "é")):  # fmt: skip
        outcome = cli(*words)
        assert outcome.code == 2
        assert "'é' (U+00E9" in outcome.err
        assert "data.unknown" not in outcome.err  # these commands cannot set the key data.unknown
        assert "never saw" in outcome.err


def test_a_dry_run_refuses_what_the_run_would_refuse(
    cli: Any, accented: Path, trained: Path
) -> None:
    outcome = cli("train", accented, "--from", trained, "--dry-run")
    assert outcome.code == 2
    assert "does not know" in outcome.err


@pytest.mark.slow
@pytest.mark.skipif(
    os.name != "posix" or sys.platform == "darwin", reason="needs file names of any bytes"
)
def test_a_tokenizer_whose_name_is_not_utf8(
    cli: Any, tmp_path: Path, text_file: Path, pieces: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(pieces, "tok\udce9.json")
    first = Path("runs", "q\udce9")
    train(cli, first, text_file, "--tokenizer", "tok\udce9.json")
    assert tokenizer_section(first)["from"] == f"{tmp_path}/tok\\xe9.json"
    for number, name in enumerate(("runs/q\udce9", "q\udce9", "runs/q\\xe9", "./runs/q\udce9/")):
        for words in (("--tokenizer", name), (f"tokenizer.from={name}",)):
            run = tmp_path / f"run{number}{len(words)}"
            train(cli, run, text_file, *words)
            stored = (run / "tokenizer.json").read_bytes()
            assert stored == pieces.read_bytes()
            assert tokenizer_section(run)["from"] == f"{tmp_path}/runs/q\\xe9"
    resumed = cli("train", "--resume", "--out", run, f"tokenizer.from={name}")
    assert resumed.code == 0, resumed.err
    train(cli, tmp_path / "tuned", text_file, "--from", first)
    assert tokenizer_section(tmp_path / "tuned")["from"] == f"{tmp_path}/runs/q\\xe9"
