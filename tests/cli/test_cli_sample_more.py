"""`gptcli sample` by the lines of a file and in turns; `gptcli score`."""

from __future__ import annotations

import json
import math
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from gptcli.native import library
from gptcli.sampling.backend import Backend, open_decoder
from gptcli.sampling.score import log_probabilities, native_log_probabilities
from gptcli.training.loading import load_trained

LINES = ["KING:", "", "QUEEN:\tWhat".replace("\t", " "), "What light is this, that comes by night?"]


def objects(out: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.splitlines()]


def needs_the_library() -> None:
    found = library.find(library.SAMPLING)
    if found.library is None:
        pytest.skip(f"no C decoder on this machine: {found.reason}")


# ---- prompts by lines ----------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize("dtype", ["auto", "float32", "int8"])
def test_each_line_is_a_prompt_and_as_alone(
    cli: Any, trained: Path, tmp_path: Path, ending: str, dtype: str
) -> None:
    if dtype == "int8":
        needs_the_library()
    file = tmp_path / "prompts.txt"
    file.write_bytes((ending.join(LINES) + ending).encode())
    words = ("--max-new-tokens", 25, "--seed", 4, "--dtype", dtype, "--num-samples", 2, "--json")
    outcome = cli("sample", trained, "--prompt-file", file, "--prompt-lines", *words)
    together = objects(outcome.out)
    assert [one["prompt"] for one in together] == [line for line in LINES for _ in range(2)]
    for i, line in enumerate(LINES):
        alone = objects(cli("sample", trained, "--prompt", line, *words).out)
        assert [one["text"] for one in alone] == [
            one["text"] for one in together[2 * i : 2 * i + 2]
        ]
    assert together[0]["text"] != together[1]["text"]


def test_many_prompts_in_order(cli: Any, trained: Path, tmp_path: Path) -> None:
    prompts = [("KING: " * 20)[: 1 + i % 97] for i in range(300)]
    file = tmp_path / "prompts.txt"
    file.write_text("\n".join(prompts), encoding="utf-8")
    words = ("--prompt-lines", "--max-new-tokens", 5, "--temperature", 0, "--json")
    found = objects(cli("sample", trained, "--prompt-file", file, *words).out)
    assert [one["prompt"] for one in found] == prompts
    texts = dict(zip(prompts, (one["text"] for one in found), strict=True))
    assert [one["text"] for one in found] == [texts[prompt] for prompt in prompts]
    plain = cli("sample", trained, "--prompt-file", file, *words[:-1]).out
    assert plain == "---\n".join(
        f"{p}{one['text']}\n" for p, one in zip(prompts, found, strict=True)
    )


def test_stop_strings_end_some_of_many(cli: Any, trained: Path, tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("KING:\nQUEEN:\nFOOL:\n" * 3, encoding="utf-8")
    words = ("--prompt-lines", "--max-new-tokens", 80, "--seed", 1, "--stop", "is", "--json")
    found = objects(cli("sample", trained, "--prompt-file", file, *words).out)
    assert all("is" not in one["text"] for one in found)
    assert {one["stopped"] for one in found} <= {"stop", "length"}
    assert "stop" in {one["stopped"] for one in found}
    assert all(one["tokens"] == 80 for one in found if one["stopped"] == "length")
    assert found[0]["text"] == found[3]["text"] == found[6]["text"]


def test_bad_prompts_are_named(cli: Any, trained: Path, tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("KING\nK\u00f6nig\n", encoding="utf-8")
    outcome = cli("sample", trained, "--prompt-file", file, "--prompt-lines")
    assert outcome.code == 2
    assert f"{file}:2: " in outcome.err
    file.write_bytes(b"")
    outcome = cli("sample", trained, "--prompt-file", file, "--prompt-lines")
    assert (outcome.code, "no line in it" in outcome.err) == (2, True)
    outcome = cli("sample", trained, "--prompt-lines")
    assert (outcome.code, "--prompt-file FILE" in outcome.err) == (2, True)


def test_the_dtype_is_said(cli: Any, trained: Path) -> None:
    words = ("sample", trained, "--max-new-tokens", 1, "--json", "--dtype")
    assert objects(cli(*words, "float32").out)[0]["dtype"] == "float32"
    assert objects(cli(*words, "bfloat16").out)[0]["dtype"] == "bfloat16"
    assert objects(cli(*words, "auto").out)[0]["dtype"] in ("float32", "bfloat16")


def test_eight_bits(cli: Any, trained: Path) -> None:
    needs_the_library()
    words = ("sample", trained, "--max-new-tokens", 4000, "--temperature", 3, "--seed", 1, "--json")
    one = objects(cli(*words, "--dtype", "int8").out)[0]
    exact = objects(cli(*words, "--dtype", "float32").out)[0]
    assert (one["dtype"], exact["dtype"]) == ("int8", "float32")
    assert one["text"][:5] == exact["text"][:5]
    assert one["text"] != exact["text"]  # of 4,000 choices one or another is a near thing


def test_eight_bits_are_for_sampling_in_c(
    cli: Any, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcome = cli("eval", trained, "--dtype", "int8")
    assert (outcome.code, "`int8` is for `sample` and `score`" in outcome.err) == (2, True)
    none = library.Found(None, "there is no C compiler")
    monkeypatch.setattr(library, "find", lambda source: none)
    for words in (("sample", trained), ("score", trained, __file__)):
        outcome = cli(*words, "--dtype", "int8")
        assert outcome.code == 2
        assert "there is no C compiler" in outcome.err
        assert "hint: --dtype bfloat16" in outcome.err


# ---- turns ---------------------------------------------------------------------------------------


def command(trained: Path, *words: str) -> list[str]:
    return [sys.executable, "-m", "gptcli", "sample", str(trained), "--interactive", *words]


def test_turns_from_a_pipe(trained: Path, cli: Any) -> None:
    words = ("--temperature", "0", "--max-new-tokens", "30")
    told = subprocess.run(
        command(trained, *words), input="KING:\n/new\nQUEEN:\nK\u00f6nig\n", text=True, check=True,
        capture_output=True, encoding="utf-8",
    )  # fmt: skip
    expected = ""
    for prompt in ("KING:", "QUEEN:"):
        (one,) = objects(cli("sample", trained, "--prompt", prompt, *words, "--json").out)
        expected += one["text"] + ("" if one["text"].endswith("\n") else "\n")
    assert told.stdout == expected
    assert told.stderr.startswith("error: ")
    assert "Traceback" not in told.stderr


def test_turns_of_bytes_that_are_no_text(trained: Path) -> None:
    told = subprocess.run(
        command(trained, "--max-new-tokens", "5"), input=b"\xff\nKING:\n", capture_output=True,
        env={**os.environ, "PYTHONUTF8": "1"},
    )  # fmt: skip
    assert told.returncode == 0
    assert b"Traceback" not in told.stderr
    closed = subprocess.run(
        ["sh", "-c", 'exec "$@" <&-', "sh", *command(trained)], capture_output=True
    )
    assert (closed.returncode, closed.stdout) == (0, b"")


@pytest.mark.parametrize("option", ["--top-p", "--min-p", "--temperature"])
def test_what_is_not_a_number_is_refused(cli: Any, trained: Path, option: str) -> None:
    outcome = cli("sample", trained, option, "nan")
    assert outcome.code == 2
    assert option in outcome.err


def test_what_does_not_go_with_turns_is_refused(cli: Any, trained: Path) -> None:
    for words in (("--json",), ("--num-samples", 2)):
        outcome = cli("sample", trained, "--interactive", *words)
        assert outcome.code == 2
        assert "--interactive writes one text" in outcome.err


@pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals")
def test_ctrl_c_stops_the_sample_and_not_the_program(trained: Path) -> None:
    import pty

    controller, terminal = pty.openpty()
    process = subprocess.Popen(
        command(trained, "--max-new-tokens", "100000000", "--seed", "1"),
        stdin=terminal, stdout=terminal, stderr=terminal, start_new_session=True,
        env={**os.environ, "TERM": "xterm"},
    )  # fmt: skip
    os.close(terminal)
    shown = b""

    def wait_for(what: bytes, least: int = 1, seconds: float = 300) -> None:
        nonlocal shown
        until = time.monotonic() + seconds
        while shown.count(what) < least:
            assert time.monotonic() < until, shown[-2000:]
            if select.select([controller], [], [], 0.2)[0]:
                shown += os.read(controller, 65536)

    try:
        wait_for(b"> ")
        for turn in (1, 2):
            os.write(controller, b"KING:\n")
            wait_for(b"night", 50 * turn)
            os.kill(process.pid, signal.SIGINT)
            shown_so_far = shown.count(b"> ")
            wait_for(b"> ", shown_so_far + 1)
        os.write(controller, b"/quit\n")
        assert process.wait(300) == 0
        assert b"Traceback" not in shown
    finally:
        process.kill()
        process.wait()
        os.close(controller)


# ---- score ---------------------------------------------------------------------------------------


def test_scores_add_up(cli: Any, trained: Path, tmp_path: Path) -> None:
    text = "KING:\nWhat light is this, that comes by night?\n\nttttt"
    file = tmp_path / "text.txt"
    file.write_text(text, encoding="utf-8")
    (found,) = objects(cli("score", trained, file, "--json").out)
    scores = [one["log_probability"] for one in found["scores"]]
    assert "".join(one["text"] for one in found["scores"]) == text
    assert found["tokens"] == len(scores) == len(text)
    assert found["log_probability"] == pytest.approx(math.fsum(scores))
    assert found["loss"] == pytest.approx(-math.fsum(scores) / len(text))
    assert found["perplexity"] == pytest.approx(math.exp(found["loss"]))
    assert found["bits_per_byte"] == pytest.approx(found["loss"] / math.log(2))
    # What it has learned it finds likely, what it has not it does not.
    file.write_text(text[::-1], encoding="utf-8")
    (backwards,) = objects(cli("score", trained, file, "--json").out)
    assert backwards["loss"] > found["loss"] + 1
    file.write_text(text, encoding="utf-8")
    lines = cli("score", trained, file).out.splitlines()
    assert [json.loads(line.split("\t", 2)[2]) for line in lines] == list(text)
    assert [float(line.split("\t")[0]) for line in lines] == pytest.approx(scores, abs=1e-4)


@pytest.mark.parametrize(("dtype", "by"), [("bfloat16", "c"), ("int8", "c"), ("bfloat16", "torch")])
def test_scores_round_as_sampling_does(
    cli: Any,
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    dtype: str,
    by: str,
) -> None:
    text = "KING:\nWhat light is this, that comes by night?\n" * 3
    file = tmp_path / "text.txt"
    file.write_text(text, encoding="utf-8")
    run = load_trained(trained, None, device=torch.device("cpu"), dtype=torch.float32)
    start, ids = run.tokenizer.start_ids(), run.tokenizer.encode(text)
    if by == "c":
        needs_the_library()
        decoder = open_decoder(run.model, Backend("native", getattr(torch, dtype)), 2)
        expected = native_log_probabilities(decoder, run.config.model, start, ids)
    else:
        none = library.Found(None, "there is no C compiler")
        monkeypatch.setattr(library, "find", lambda source: none)
        expected = log_probabilities(run.model.branches_in(torch.bfloat16), start, ids)
    (told,) = objects(cli("score", trained, file, "--dtype", dtype, "--json").out)
    found = [score["log_probability"] for score in told["scores"]]
    assert found == pytest.approx(expected.tolist(), abs=1e-6)


def test_score_agrees_with_eval_within_a_window(cli: Any, trained: Path, tmp_path: Path) -> None:
    text = "\nKING:\nWhat hand is this, that"  # no longer than the context
    file = tmp_path / "text.txt"
    file.write_text(text[1:], encoding="utf-8")
    (scored,) = objects(cli("score", trained, file, "--json").out)
    file.write_text(text, encoding="utf-8")
    (evaluated,) = objects(cli("eval", trained, "--file", file, "--dtype", "float32", "--json").out)
    assert scored["loss"] == pytest.approx(evaluated["loss"], rel=1e-4)


def test_what_cannot_be_scored(cli: Any, trained: Path, tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    for content, says in ((b"", "is empty"), (b"\xff", "not UTF-8"), ("ü".encode(), "ü")):
        file.write_bytes(content)
        outcome = cli("score", trained, file)
        assert outcome.code == 2
        assert says in outcome.err
    outcome = cli("score", trained, tmp_path / "none.txt")
    assert (outcome.code, "cannot be read" in outcome.err) == (2, True)
    outcome = cli("score", trained, file, "more")
    assert (outcome.code, "got 3 words" in outcome.err) == (2, True)
