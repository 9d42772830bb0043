"""The plain lines about a run's progress. Their format must not change, because scripts may read
them."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import pytest
from rich.console import Console

from gptcli.events import (
    CheckpointSaved,
    Evaluated,
    Event,
    Finished,
    Notice,
    Replanned,
    SampleDrawn,
)
from gptcli.view.plain import PlainView
from gptcli.view.run_end import next_lines
from tests.view.view_screen import a_run, started, step_done


def shown(*events: Event, encoding: str = "utf-8") -> list[str]:
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding, newline="\n")
    with PlainView(Console(file=stream, width=40)) as view:
        for event in events:
            view.handle(event)
    stream.seek(0)
    return stream.read().splitlines()


def test_only_logged_steps_print_a_line() -> None:
    lines = shown(
        started(), *(step_done(step, loss=2.34567, logged=step == 100) for step in range(1, 101)),
        Finished(100, 204_800, 3.0, "done", 2.3, None, None, None),
    )  # fmt: skip
    assert [line for line in lines if line.startswith("step")] == [
        "step 100/3000  loss 2.3457  lr 2.00e-02  norm 0.71  61,234 tok/s  eta 1:37"
    ]


def test_the_first_lines_name_text_model_and_device() -> None:
    text = "\n".join(shown(started(compiled=True, resumed_from=600)))
    for fact in ("shakespeare", "runs", "modern", "820,864", "812,544", "char, 65 tokens",
                 "1,003,854", "111,540 for validation", "3,000 steps of 2,048 tokens",
                 "from step 600", "cpu (2 threads)", "float32", "compiled"):  # fmt: skip
        assert fact in text
    assert "validation" not in "\n".join(shown(started(val_tokens=0)))


def test_a_count_of_one_has_its_noun_in_the_singular() -> None:
    lines = shown(started(vocab_size=1, train_tokens=1, max_steps=1, tokens_per_step=1))
    assert "char, 1 token; 1 token of text, 111,540 for validation" in lines
    assert "1 step of 1 token" in lines


def test_evaluations_checkpoints_samples_and_notices() -> None:
    lines = shown(
        started(max_steps=500),
        Evaluated(200, 1, 1.0, 1.98766, best=True),
        Evaluated(400, 1, 1.0, 2.0, best=False),
        CheckpointSaved(400, Path("runs/x/checkpoints/step-00000400")),
        SampleDrawn(200, "\n", "\nKING:\nWhat\x1b[2J?"),
        SampleDrawn(400, "KING:", "\nWhat?"),
        Notice("two of\rthem\x07"),
    )
    assert lines[-7:] == [
        "step 200/500  val_loss 1.9877  best",
        "step 400/500  val_loss 2.0000",
        "step 400/500  saved",
        "step 200/500  sample KING:\\nWhat␛[2J?",
        "step 400/500  sample KING:\\nWhat?",
        "two of",
        "them␇",
    ]


@pytest.mark.parametrize(
    ("stopped", "words"),
    [
        ("done", "done at step 1,240 of 3,000"),
        ("target", "target reached at step 1,240 of 3,000"),
        ("patience", "stopped early (no improvement) at step 1,240 of 3,000"),
        ("interrupted", "interrupted at step 1,240 of 3,000"),
    ],
)
def test_the_last_lines_say_how_the_run_ended(stopped: str, words: str) -> None:
    finished = Finished(1240, 2_539_520, 40.0, stopped, 1.5, 1.6, 1.55, 1200)  # type: ignore[arg-type]
    assert shown(started(), finished)[-4:] == [
        words,
        "2,539,520 tokens in 0:40, 63,488 tok/s",
        "loss 1.5000  val loss 1.6000  best 1.5500 at step 1,200",
        "`sample` uses the best step, 1,200",
    ]


def test_the_last_lines_without_losses_and_time() -> None:
    assert shown(started(), Finished(0, 0, 0.0, "interrupted", None, None, None, None))[-2:] == [
        "interrupted at step 0 of 3,000",
        "0 tokens in 0.0 s",
    ]


def test_a_diverged_run_prints_its_diagnosis() -> None:
    diagnosis = "the loss is not finite at step 7: learning rate 2.0e-02, " + "gradient " * 20
    lines = shown(started(), Finished(7, 14_336, 0.4, "diverged", float("nan"), None, None, None,
                                      diagnosis, "lower train.learning_rate"))  # fmt: skip
    assert lines[-7] == "diverged at step 7 of 3,000"
    assert lines[-5:] == ["loss nan", "", diagnosis, "", "hint: lower train.learning_rate"]


def test_after_an_error_a_line_names_the_last_step() -> None:
    stream = io.StringIO()
    with suppress(ZeroDivisionError), PlainView(Console(file=stream)) as view:
        view.handle(started())
        view.handle(step_done(30, loss=2.0))
        raise ZeroDivisionError
    assert stream.getvalue().endswith("stopped at step 30 of 3,000 after 1.0 s, loss 2.0000\n")


@pytest.mark.parametrize("steps", [1000, 100_000, 10_000_000])
@pytest.mark.parametrize("speed", [0.0, 61_234.0, 1_234_567.0, 98_765_432.0, float("nan")])
def test_lines_are_short_and_can_be_split_into_fields(steps: int, speed: float) -> None:
    loss_norms = ((2.3456, 0.7), (123.4567, 31_000.0), (float("nan"), float("inf")))
    lines = [
        line
        for loss, norm in loss_norms
        for line in shown(
            started(max_steps=steps, source="a/" * 60 + "b.txt", run=Path("r" * 70)),
            step_done(1, seconds=0.0),
            step_done(steps // 2, loss=loss, grad_norm=norm, tokens_per_second=speed,
                      logged=True, seconds=900_000.0),
            SampleDrawn(steps // 2, "\n", "日本語" * 50),
        )
    ]  # fmt: skip
    assert all(len(line) < 80 for line in lines), lines
    logged = [line.split("  ") for line in lines if "  loss " in line and line.startswith("step")]
    assert len(logged) == len(loss_norms)
    for fields in logged:
        assert fields[0] == f"step {steps // 2}/{steps}"
        assert re.fullmatch(r"loss (\d+\.\d{4}|nan)", fields[1])
        assert re.fullmatch(r"lr \d\.\d\de-\d\d", fields[2])


def test_an_ascii_stream_gets_ascii() -> None:
    lines = shown(*a_run(200, sample="日本"), encoding="ascii")
    assert "step 200/3000  sample ??" in lines


def test_a_pipe_gets_no_terminal_codes() -> None:
    assert not any("\x1b" in line for line in shown(*a_run(200)))


def test_lines_after_a_new_plan_have_the_new_total() -> None:
    lines = shown(
        started(max_steps=500), Replanned(100, 400, "the machine is slower than measured"),
        step_done(200, logged=True), Finished(400, 1, 1.0, "done", 1.5, None, None, None),
    )  # fmt: skip
    assert lines[5] == "step 100/400  planned again: the machine is slower than measured"
    assert lines[6].startswith("step 200/400  loss ")
    assert "done at step 400 of 400" in lines


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A list with one number: the time that time.monotonic returns to the view.

    The test can change the number."""
    now = [100.0]
    monkeypatch.setattr("gptcli.view.plain.time.monotonic", lambda: now[0])
    return now


def a_whole_run(steps: int, log_every: int, eval_every: int, sample_every: int) -> Iterator[Event]:
    yield started(max_steps=steps)
    for step in range(1, steps + 1):
        yield step_done(step, logged=step == 1 or step % log_every == 0 or step == steps)
        if step % eval_every == 0 or step == steps:
            yield Evaluated(step, 1, 1.0, 2.0 + 1 / step, best=True)
            yield CheckpointSaved(step, Path("x"))
        if step % sample_every == 0:
            yield SampleDrawn(step, "", "text")
    yield SampleDrawn(steps // 2, "", "text of the best")
    yield Finished(steps, 1, 1.0, "done", 2.0, 2.0, 2.0, steps)


@pytest.mark.long_series
@pytest.mark.parametrize(
    "every", [(1, 1, 1), (2, 13, 52), (26, 26, 26), (1, 10**6, 10**6)], ids=str
)
@pytest.mark.parametrize("steps", [5, 262, 20_000])
def test_a_run_prints_about_thirty_lines(steps: int, every: tuple[int, int, int]) -> None:
    lines = shown(*a_whole_run(steps, *every))
    assert len(lines) <= 32
    log = [line for line in lines if line.startswith(f"step {steps}/{steps}  ")]
    assert any("  loss " in line for line in log), "the last step"
    assert any("  val_loss " in line for line in log), "the last evaluation"
    assert f"step {steps // 2}/{steps}  sample text of the best" in lines
    if steps > every[0] * 10:
        steps_shown = [int(line.split("/")[0][5:]) for line in lines if "  loss " in line
                       and line.startswith("step ")]  # fmt: skip
        assert 6 <= len(steps_shown) <= 8
        gaps = [b - a for a, b in pairwise([0, *steps_shown])]
        assert max(gaps) <= steps / 5, "spread over the run"


@pytest.mark.parametrize("seconds_per_step", [0.5, 9.0, 50.0])
def test_a_long_run_prints_a_line_each_minute(seconds_per_step: float, clock: list[float]) -> None:
    """Even if the run logs few of its steps, the view prints at least one line a minute, and not
    many more lines."""
    stream = io.StringIO()
    steps, printed = round(7200 / seconds_per_step), [clock[0]]
    with PlainView(Console(file=stream, width=80)) as view:
        view.handle(started(max_steps=steps))
        for step in range(1, steps + 1):
            clock[0] += seconds_per_step
            before = stream.tell()
            view.handle(step_done(step, logged=step % 100 == 1))
            if stream.tell() > before:
                printed.append(clock[0])
    assert max(b - a for a, b in pairwise(printed)) <= 60.0
    assert len(stream.getvalue().splitlines()) <= 120 + 5 + 10 + (30 if seconds_per_step > 5 else 0)


RISING = (
    Evaluated(100, 1, 1.0, 1.567, best=True),
    Evaluated(200, 1, 1.0, 1.58, best=False),
    Evaluated(300, 1, 1.0, 1.612, best=False),
    Evaluated(400, 1, 1.0, 1.7, best=False),
)


def a_run_that_memorises(loss_after: float = 0.5) -> Iterator[Event]:
    yield started(max_steps=500)
    for step in range(1, 401):
        yield step_done(step, loss=2.0 if step <= 100 else loss_after)
        if step % 100 == 0:
            yield RISING[step // 100 - 1]


def test_a_line_says_that_the_run_memorises() -> None:
    """When the validation loss rises for the second time in a row, one line says so.

    The last line says which step `sample` uses."""
    lines = shown(*a_run_that_memorises(), Finished(500, 1, 1.0, "done", 0.4, 1.7, 1.567, 100))
    notes = [line for line in lines if "has risen" in line]
    assert notes == [
        "step 300: the validation loss has risen for two evaluations "
        "(1.5670 at step 100, now 1.6120): the model is memorising the text"
    ]
    assert lines[-1] == (
        "best at step 100; since then the model has only memorised the text; `sample` uses step 100"
    )


def test_a_run_whose_own_loss_rises_too_does_not_memorise() -> None:
    lines = shown(
        *a_run_that_memorises(loss_after=2.5), Finished(500, 1, 1.0, "done", 2.5, 1.7, 1.567, 100)
    )
    (note,) = (line for line in lines if "has risen" in line)
    assert note.endswith("(1.5670 at step 100, now 1.6120)")
    assert lines[-1] == "`sample` uses the best step, 100"


def test_one_rise_or_a_fall_between_two_is_no_reason_for_a_line() -> None:
    losses = (1.5, 1.6, 1.55, 1.7, 1.65)
    events = [Evaluated(step, 1, 1.0, loss, best=step == 1) for step, loss in enumerate(losses, 1)]
    assert not any("risen" in line for line in shown(started(), *events))


def test_a_run_that_ends_at_its_best_names_no_step() -> None:
    lines = shown(*a_run(200), Finished(200, 1, 1.0, "done", 2.0, 2.0, 2.0, 200))
    assert lines[-1] == "loss 2.0000  val loss 2.0000  best 2.0000 at step 200"


def test_a_path_is_written_from_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (first, *_) = shown(started(source=f"{tmp_path}/w/../texts/x.txt", run=Path("runs/x")))
    assert first == "training on texts/x.txt, to runs/x"


def test_the_next_commands() -> None:
    assert next_lines(Path("runs/de")) == [
        'Next: gptcli sample runs/de --prompt "..." · gptcli sample runs/de -i'
    ]
    assert next_lines(Path("my runs/de"), ["--attention", "a b.py"], width=60) == [
        "Next: gptcli sample 'my runs/de' --attention 'a b.py' --prompt \"...\"",
        "      gptcli sample 'my runs/de' --attention 'a b.py' -i",
    ]


def test_a_run_with_many_jumps_of_the_loss_stays_short() -> None:
    lines = shown(
        started(max_steps=5000),
        Notice("before the first step"),
        *(event for step in range(1, 5000, 50)
          for event in (step_done(step), Notice(f"step {step}: loss 9, far above the recent 2"))),
        Notice("WARNING: the disk is full"),
        step_done(5000, logged=True),
        Notice("your module changed its buffer"),
    )  # fmt: skip
    assert sum("far above" in line for line in lines) == 5
    assert sum("further notes" in line for line in lines) == 1
    for always in ("before the first step", "WARNING: the disk is full",
                   "your module changed its buffer"):  # fmt: skip
        assert always in lines
