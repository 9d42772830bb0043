"""`gptcli sample`: text and JSON output, prompts from a file, one prompt per line, and turns."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from gptcli.native import library

LINES = ["KING:", "", "QUEEN: What", "What light is this, that comes by night?"]


def objects(out: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.splitlines()]


def skip_without_c_library() -> None:
    found = library.find(library.SAMPLING)
    if found.library is None:
        pytest.skip(f"no C decoder on this machine: {found.reason}")


# ---- one prompt ----------------------------------------------------------------------------------


def test_a_sample_in_json(cli: Any, trained: Path) -> None:
    outcome = cli(
        "sample",
        trained,
        "--prompt",
        "KING",
        "--max-new-tokens",
        30,
        "--num-samples",
        3,
        "--seed",
        1,
        "--json",
    )
    assert outcome.code == 0, outcome.err
    samples = objects(outcome.out)
    assert len(samples) == 3
    for sample in samples:
        assert sample.keys() >= {
            "text",
            "prompt",
            "tokens",
            "seconds",
            "tokens_per_second",
            "stopped",
        }
        assert (sample["prompt"], sample["tokens"], sample["stopped"]) == ("KING", 30, "length")
        assert len(sample["text"]) == 30
        assert sample["tokens_per_second"] == pytest.approx(30 / sample["seconds"])
    assert len({sample["text"] for sample in samples}) == 3


def test_a_seed_gives_the_same_text_for_any_number_of_samples(cli: Any, trained: Path) -> None:
    def texts(n: int, seed: int) -> list[str]:
        out = cli(
            "sample", trained, "--num-samples", n, "--seed", seed, "--max-new-tokens", 40, "--json"
        ).out
        return [sample["text"] for sample in objects(out)]

    assert texts(1, 5) == texts(3, 5)[:1]
    assert texts(1, 5) != texts(1, 6)


def test_plain_output_is_prompt_and_continuation(cli: Any, trained: Path) -> None:
    words = ("--prompt", "QUEEN:", "--seed", 3, "--max-new-tokens", 20)
    plain = cli("sample", trained, *words)
    streamed = cli("sample", trained, *words, "--stream")
    (sample,) = objects(cli("sample", trained, *words, "--json").out)
    assert plain.out == streamed.out == "QUEEN:" + sample["text"] + "\n"
    assert cli("sample", trained, *words, "--num-samples", 2).out.count("\n---\n") == 1


def test_stop_strings_and_greedy(cli: Any, trained: Path) -> None:
    greedy = (
        "sample",
        trained,
        "--prompt",
        "KING:\nWhat",
        "--temperature",
        0,
        "--json",
        "--max-new-tokens",
        60,
    )
    (whole,) = objects(cli(*greedy).out)
    assert whole == {
        **objects(cli(*greedy, "--seed", 9).out)[0],
        "seed": whole["seed"],
        "seconds": whole["seconds"],
        "tokens_per_second": whole["tokens_per_second"],
    }
    stop = whole["text"][10:14]
    (cut,) = objects(cli(*greedy, "--stop", stop, "--stop", "not in it at all").out)
    assert cut["stopped"] == "stop"
    assert cut["text"] == whole["text"][: whole["text"].index(stop)]


def test_a_prompt_from_a_file(cli: Any, trained: Path, tmp_path: Path) -> None:
    path = tmp_path / "prompt.txt"
    path.write_text("FOOL:\nWhat\n", encoding="utf-8")
    (sample,) = objects(cli("sample", trained, "--prompt-file", path, "--json").out)
    assert sample["prompt"] == "FOOL:\nWhat"


def test_zero_new_tokens(cli: Any, trained: Path) -> None:
    (sample,) = objects(cli("sample", trained, "--max-new-tokens", 0, "--json").out)
    assert (sample["tokens"], sample["text"]) == (0, "")


# ---- prompts by lines ----------------------------------------------------------------------------


@pytest.mark.long_series
@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize("dtype", ["auto", "float32", "int8"])
def test_each_line_is_a_prompt_with_the_text_of_that_prompt_only(
    cli: Any, trained: Path, tmp_path: Path, ending: str, dtype: str
) -> None:
    if dtype == "int8":
        skip_without_c_library()
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
    words = ("--prompt-lines", "--max-new-tokens", 80, "--seed", 1, "--stop", "t", "--json")
    found = objects(cli("sample", trained, "--prompt-file", file, *words).out)
    assert all("t" not in one["text"] for one in found)
    assert {one["stopped"] for one in found} <= {"stop", "length"}
    assert "stop" in {one["stopped"] for one in found}
    assert all(one["tokens"] == 80 for one in found if one["stopped"] == "length")
    assert found[0]["text"] == found[3]["text"] == found[6]["text"]


def test_errors_name_the_file_and_the_line_of_a_prompt(
    cli: Any, trained: Path, tmp_path: Path
) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("KING\nK\u00f6nig\n", encoding="utf-8")
    outcome = cli("sample", trained, "--prompt-file", file, "--prompt-lines")
    assert outcome.code == 2
    assert f"{file}:2: " in outcome.err
    file.write_bytes(b"")
    outcome = cli("sample", trained, "--prompt-file", file, "--prompt-lines")
    assert (outcome.code, "has no lines" in outcome.err) == (2, True)
    outcome = cli("sample", trained, "--prompt-lines")
    assert (outcome.code, "--prompt-file FILE" in outcome.err) == (2, True)


def test_the_json_has_the_dtype(cli: Any, trained: Path) -> None:
    words = ("sample", trained, "--max-new-tokens", 1, "--json", "--dtype")
    assert objects(cli(*words, "float32").out)[0]["dtype"] == "float32"
    assert objects(cli(*words, "bfloat16").out)[0]["dtype"] == "bfloat16"
    assert objects(cli(*words, "auto").out)[0]["dtype"] in ("float32", "bfloat16")


def test_int8_begins_as_float32(cli: Any, trained: Path) -> None:
    skip_without_c_library()
    words = ("sample", trained, "--max-new-tokens", 4000, "--temperature", 3, "--seed", 1, "--json")
    one = objects(cli(*words, "--dtype", "int8").out)[0]
    exact = objects(cli(*words, "--dtype", "float32").out)[0]
    assert (one["dtype"], exact["dtype"]) == ("int8", "float32")
    assert one["text"][:5] == exact["text"][:5]
    assert one["text"] != exact["text"]  # int8 changes at least one of the 4,000 tokens


def test_int8_needs_sampling_by_the_c_library(
    cli: Any, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcome = cli("eval", trained, "--dtype", "int8")
    assert outcome.code == 2
    assert "`int8` works only with `sample`, `score` and `serve`" in outcome.err
    none = library.Found(None, "there is no C compiler")
    monkeypatch.setattr(library, "find", lambda source: none)
    for words in (("sample", trained), ("score", trained, __file__)):
        outcome = cli(*words, "--dtype", "int8")
        assert outcome.code == 2
        assert "there is no C compiler" in outcome.err
        assert "hint: use --dtype bfloat16" in outcome.err


# ---- turns ---------------------------------------------------------------------------------------


def command(trained: Path, *words: str) -> list[str]:
    return [sys.executable, "-m", "gptcli", "sample", str(trained), "--interactive", *words]


@pytest.mark.slow
def test_turns_from_a_pipe(trained: Path, cli: Any) -> None:
    words = ("--temperature", "0", "--max-new-tokens", "30")
    finished = subprocess.run(
        command(trained, *words), input="KING:\n/new\nQUEEN:\nK\u00f6nig\n", text=True, check=True,
        capture_output=True, encoding="utf-8",
    )  # fmt: skip
    expected = ""
    for prompt in ("KING:", "QUEEN:"):
        (one,) = objects(cli("sample", trained, "--prompt", prompt, *words, "--json").out)
        expected += one["text"] + ("" if one["text"].endswith("\n") else "\n")
    assert finished.stdout == expected
    assert finished.stderr.startswith("error: ")
    assert "Traceback" not in finished.stderr


@pytest.mark.slow
def test_turns_survive_bytes_that_are_not_utf8(trained: Path) -> None:
    finished = subprocess.run(
        command(trained, "--max-new-tokens", "5"), input=b"\xff\nKING:\n", capture_output=True,
        env={**os.environ, "PYTHONUTF8": "1"},
    )  # fmt: skip
    assert finished.returncode == 0
    assert b"Traceback" not in finished.stderr
    closed = subprocess.run(
        ["sh", "-c", 'exec "$@" <&-', "sh", *command(trained)], capture_output=True
    )
    assert (closed.returncode, closed.stdout) == (0, b"")


@pytest.mark.parametrize("option", ["--top-p", "--min-p", "--temperature"])
def test_nan_is_refused(cli: Any, trained: Path, option: str) -> None:
    outcome = cli("sample", trained, option, "nan")
    assert outcome.code == 2
    assert option in outcome.err


def test_options_that_contradict_interactive_are_refused(cli: Any, trained: Path) -> None:
    for words in (("--json",), ("--num-samples", 2)):
        outcome = cli("sample", trained, "--interactive", *words)
        assert outcome.code == 2
        assert "--interactive generates one text" in outcome.err


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs pseudo-terminals")
def test_ctrl_c_stops_the_answer_but_not_the_program(trained: Path) -> None:
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
            wait_for(b"th", 50 * turn)
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
