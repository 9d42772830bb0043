"""If the input is wrong, gptcli prints an error and a hint on stderr, and damages no file."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest


def form(outcome: Any) -> tuple[str, str]:
    """The message and the hint of a command. Fails if the command printed anything else."""
    assert outcome.out == ""
    assert "Traceback" not in outcome.err
    message, _, rest = outcome.err.partition("\n")
    assert message.startswith("error: "), outcome.err
    assert rest.startswith("\nhint: "), outcome.err
    return message.removeprefix("error: "), rest.removeprefix("\nhint: ").rstrip("\n")


def test_misspelt_key(cli: Any, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("model:\n  n_layer: 2\n  n_embed: 64\n", encoding="utf-8")
    outcome = cli("train", path)
    assert outcome.code == 2
    assert form(outcome) == (
        f"{path}:3: unknown key `model.n_embed`",
        "did you mean `model.n_embd`?",
    )


def test_missing_file(cli: Any, tmp_path: Path) -> None:
    (tmp_path / "letters.txt").write_text("x", encoding="utf-8")
    outcome = cli("train", tmp_path / "leters.txt")
    assert outcome.code == 2
    message, hint = form(outcome)
    assert message == f"no config or text file named `{tmp_path / 'leters.txt'}`"
    assert hint.startswith(f"did you mean `{tmp_path / 'letters.txt'}`?")
    assert cli("train", tmp_path / "no.yaml").code == 2


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"PNG\x00\x01\x02" * 99, ("binary",)),
        (b"good text \xff\xfe bad", ("UTF-8", "10")),
        (b"", ("x.txt is empty",)),
        (b"short", ("block_size",)),
    ],
)
def test_files_that_are_no_text(
    content: bytes, words: tuple[str, ...], cli: Any, tmp_path: Path
) -> None:
    path = tmp_path / "x.txt"
    path.write_bytes(content)
    outcome = cli("train", path, "--out", tmp_path / "r")
    assert outcome.code == 2
    message, hint = form(outcome)
    for word in words:
        assert word in message + hint
    assert not (tmp_path / "r").exists(), "a run that never started must leave no folder"


def test_unknown_prompt_character(cli: Any, trained: Path) -> None:
    outcome = cli("sample", trained, "--prompt", "KING £")
    assert outcome.code == 2
    message, hint = form(outcome)
    assert "£" in message
    assert "tokenizer.kind=byte" in hint


def test_n_head_that_does_not_divide_n_embd(cli: Any) -> None:
    outcome = cli("train", "tiny", "model.n_head=3")
    assert outcome.code == 2
    assert form(outcome) == (
        "model.n_head=3: n_embd 64 is not divisible by n_head 3",
        "n_head could be 2 or 4, or n_embd could be 60 or 66",
    )


def test_unwritable_folder(cli: Any, tmp_path: Path, text_file: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("a file where a folder should be", encoding="utf-8")
    outcome = cli("train", text_file, "--out", blocked / "run")
    assert outcome.code == 2
    message, hint = form(outcome)
    assert message == f"{blocked} is a file, not a folder"
    assert "--out" in hint


@pytest.mark.parametrize("name", ["model.gguf", "model.onnx"])
def test_an_exported_file_is_no_run_and_no_text(
    name: str, cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_bytes(b"GGUF")
    message, hint = form(cli("sample", name))
    assert message.startswith(f"{name} is a model of another program")
    assert "train" not in hint


@pytest.mark.parametrize("command", ["sample", "eval", "train"])
def test_a_run_that_does_not_exist(
    command: str, cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ("--resume", "--out", "nowhere") if command == "train" else ("nowhere",)
    outcome = cli(command, *words)
    assert outcome.code == 2
    assert form(outcome)[0] == "no run named `nowhere`"


def test_a_folder_without_runs(cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert form(cli("sample")) == ("no runs under runs/", "train one: gptcli train")
    outcome = cli("runs")
    assert (outcome.code, outcome.out) == (0, "")


def test_a_checkpoint_with_a_flipped_byte(cli: Any, trained: Path, tmp_path: Path) -> None:
    run = tmp_path / "copy"
    shutil.copytree(trained, run)
    for path in run.glob("checkpoints/*/model.safetensors"):
        data = bytearray(path.read_bytes())
        data[-100] ^= 4
        path.write_bytes(bytes(data))
    for command in ("sample", "eval"):
        outcome = cli(command, run)
        assert outcome.code == 1
        message, _ = form(outcome)
        assert message.endswith(
            "model.safetensors is damaged: its SHA-256 differs from the SHA-256 in meta.json"
        )


def test_a_damaged_tokenizer_is_named(cli: Any, trained: Path, tmp_path: Path) -> None:
    run = tmp_path / "copy"
    shutil.copytree(trained, run)
    path = run / "tokenizer.json"
    path.write_text(path.read_text("utf-8")[:-5], encoding="utf-8")
    outcome = cli("sample", run)
    assert outcome.code != 0
    assert "tokenizer.json" in form(outcome)[0]


@pytest.mark.parametrize(
    "words",
    [
        ("train", "tiny", "shakespeare"),
        ("train", "tiny", "--extend"),
        ("train", "tiny", "--force"),
        ("train", "tiny", "--resume", "--overwrite"),
        ("train", "tiny", "--resume", "--dry-run"),
        ("train", "tiny", "run.dtype=float16", "run.device=cpu"),
        ("sample", "SMALL", "--prompt", "a", "--prompt-file", "b"),
        ("sample", "SMALL", "--prompt-file", "no-such-file"),
        ("sample", "SMALL", "--checkpoint", "77"),
        ("sample", "SMALL", "--checkpoint", "-1"),
        ("sample", "SMALL", "--repetition-penalty", "0"),
        ("sample", "SMALL", "--repetition-penalty", "1e-300"),
        ("sample", "SMALL", "--repetition-penalty", "0.0099"),
        ("sample", "SMALL", "--repetition-penalty", "100.1"),
        ("sample", "SMALL", "--temperature", "nan"),
        ("sample", "SMALL", "--device", "cudda"),
        ("sample", "SMALL", "--attention", "no-such-file.py"),
        ("eval", "SMALL", "--context", "33"),
        ("eval", "SMALL", "--split", "test"),
        ("eval", "SMALL", "--file", "no-such-file.txt"),
        ("configs", "no-such-config"),
        ("check-attention", "no-such-file.py"),
        ("tokenizer", "train", "no-such-file.txt", "--out", "x.json"),
    ],
)
def test_more_wrong_command_lines(
    words: tuple[str, ...], cli: Any, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = cli(*(str(trained) if word == "SMALL" else word for word in words))
    assert outcome.code == 2, outcome.err
    form(outcome)
    assert not (tmp_path / "runs").exists() or not list((tmp_path / "runs").iterdir())


def test_control_characters_of_a_file_do_not_reach_the_terminal(
    cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    path = tmp_path / "mine.yaml"
    path.write_text('"\\e[2J\\e]0;title\\a": 1\n', encoding="utf-8")
    monkeypatch.setattr(type(sys.stderr), "isatty", lambda self: True, raising=False)
    monkeypatch.setenv("NO_COLOR", "1")
    outcome = cli("train", path)
    assert outcome.code == 2
    assert "unknown key `\N{SYMBOL FOR ESCAPE}[2J" in outcome.err
    assert "\x1b[2J" not in outcome.err
    assert "\x1b]0" not in outcome.err


@pytest.mark.parametrize("dots", [20, 100_000])
def test_an_override_with_too_many_parts_is_refused(dots: int, cli: Any) -> None:
    outcome = cli("train", "tiny", "model" + ".x" * dots + "=1")
    assert outcome.code == 2
    assert "the key has too many parts" in form(outcome)[0]


def test_a_model_larger_than_the_memory_is_refused_before_it_is_built(
    cli: Any, tmp_path: Path, text_file: Path
) -> None:
    large = ("model.n_layer=1000", "model.n_embd=16384", "model.block_size=8")
    outcome = cli("train", text_file, *large, "--out", tmp_path / "r", "run.engine=torch")
    assert outcome.code == 2, outcome.err
    assert "this machine has" in outcome.err
    assert "error: the model has 3,222," in outcome.err


def test_debug_shows_the_traceback(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    from gptcli.cli import main
    from gptcli.errors import GptcliError

    monkeypatch.setattr(sys, "argv", ["gptcli", "train", "no-such", "--debug"])
    with pytest.raises(GptcliError):
        main()


@pytest.mark.skipif(
    os.name != "posix" or not hasattr(os, "geteuid") or os.geteuid() == 0,
    reason="root can write to every folder",
)
def test_a_folder_without_permission(cli: Any, tmp_path: Path, text_file: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    outcome = cli("train", text_file, "--out", closed / "run")
    assert outcome.code == 2
    assert "Permission denied" in outcome.err


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(28, "No space left on device", "runs/x/metrics.jsonl"),
         "runs/x/metrics.jsonl: No space left on device"),
        (MemoryError(), "out of memory"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried ..."),
         "out of memory"),
    ],
)  # fmt: skip
def test_errors_of_the_machine_have_the_error_form(
    error: Exception, message: str, cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gptcli.training import setup

    def refuse(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(setup, "open_text", refuse)
    outcome = cli("train", "tiny", "--out", "never")
    assert outcome.code == 1
    assert form(outcome)[0] == message


@pytest.mark.skipif(os.name != "posix", reason="Windows does not delete a folder in use")
def test_a_deleted_current_folder(
    cli: Any, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "d").mkdir()
    monkeypatch.chdir(tmp_path / "d")
    (tmp_path / "d").rmdir()
    outcome = cli("train", text_file)
    assert outcome.code == 1
    message, hint = form(outcome)
    assert message.startswith("the current folder cannot be used (No such file or directory)")
    assert "cd" in hint
    assert cli("train", "--help").code == 0
    assert cli("--version").code == 0
