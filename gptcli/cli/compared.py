"""Output of `compare` and `sweep`: curves, table, samples and verdicts, as text, page or JSON."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptcli.cli.output import note, print_json, stdout_console
from gptcli.errors import GptcliError
from gptcli.files.paths import shell_word
from gptcli.plurals import counted

if TYPE_CHECKING:
    from gptcli.experiments.arms import Arm
    from gptcli.experiments.intervals import Difference

SAMPLE_TOKENS = 160
_MOST_SAMPLES = 6
_MOST_VERDICTS = 6


def pairs_of(arms: list[Arm]) -> list[tuple[Arm, Arm, Difference]]:
    """(first arm, another arm, difference of their losses) for every arm except the first."""
    from gptcli.experiments.intervals import difference_of

    return [(arms[0], other, difference_of(arms[0].losses(), other.losses())) for other in arms[1:]]


def verdicts_of(arms: list[Arm], problem: str | None) -> list[str]:
    """For each pair of `pairs_of`, a sentence with the verdict.

    If there are three pairs or more, and each has an interval, one more sentence warns that a
    difference can be chance. If the arms cannot be compared, returns only `problem`, which says
    why."""
    from gptcli.experiments.intervals import verdict

    if problem is not None:
        return [problem]
    said = [verdict(a.name, b.name, found) for a, b, found in pairs_of(arms)]
    if len(arms) > 3 and all(found.interval for _, _, found in pairs_of(arms)):
        said.append(
            f"these are {len(arms) - 1} comparisons: even if all configs were equally good, about "
            "one comparison in 20 would look like more than noise"
        )
    return said


def show_arms(
    arms: list[Arm], *, title: str, prompt: str, page: Path | None, as_json: bool
) -> None:
    """Print the comparison of the arms. If the path `page` is given, also write the HTML page."""
    from gptcli.experiments.arms import differing_settings, why_not_comparable

    problem = why_not_comparable(arms)
    said = verdicts_of(arms, problem)
    differing = differing_settings(arms)
    settings = [
        {key: _value(values[i]) for key, values in differing.items()} for i in range(len(arms))
    ]
    samples: dict[str, str] = {}
    if page is not None or not as_json:
        for arm in arms[:_MOST_SAMPLES]:
            samples[arm.name] = _sample(arm, prompt)
    if page is not None:
        _write(page, title, arms, settings, samples, prompt, said)
    if as_json:
        _print_json(arms, problem)
        return
    _print(arms, settings, samples, prompt, said)


def _print(
    arms: list[Arm],
    settings: list[dict[str, str]],
    samples: dict[str, str],
    prompt: str,
    said: list[str],
) -> None:
    from rich.text import Text

    from gptcli.view.arms_table import ArmRow, arms_lines, samples_lines

    rows = []
    for arm, shown in zip(arms, settings, strict=True):
        mean, interval = arm.mean_and_interval()
        low, high = interval or (None, None)
        rows.append(
            ArmRow(
                arm.name, arm.curve(), mean, low, high, arm.first.seconds,
                arm.first.count("parameters"), shown,
            )
        )  # fmt: skip
    console = stdout_console()
    lines = arms_lines(rows, console)
    written = [(name, prompt, text) for name, text in samples.items() if text]
    if written:
        lines += [Text(), *samples_lines(written, 7, console)]
    else:
        lines.append(Text())
    for line in lines:
        console.print(line, soft_wrap=not console.is_terminal)
    for sentence in shortened(said, len(arms) - 1):
        console.print(Text(sentence), soft_wrap=not console.is_terminal)


def shortened(said: list[str], pairs: int) -> list[str]:
    """The sentences of `verdicts_of` for a terminal, with at most six verdicts.

    `pairs` is the number of pairs. A sentence after the verdicts, such as the warning about chance,
    is always kept."""
    left_out = min(pairs, len(said)) - _MOST_VERDICTS
    if left_out <= 0:
        return said
    more = f"{counted(left_out, 'more verdict')}: --html or --json"
    return [*said[:_MOST_VERDICTS], more, *said[pairs:]]


def _sample(arm: Arm, prompt: str) -> str:
    """The text with which the first run of `arm` continues `prompt`.

    If the run cannot write a text, prints a note and returns ""."""
    from gptcli.api.model import load

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = load(arm.first.path)
        return model.generate(prompt, max_new_tokens=SAMPLE_TOKENS, temperature=0.8, seed=1)
    except GptcliError as error:
        note(f"note: {arm.name} cannot write a sample: {error.message}")
        return ""


def _write(
    path: Path,
    title: str,
    arms: list[Arm],
    settings: list[dict[str, str]],
    samples: dict[str, str],
    prompt: str,
    said: list[str],
) -> None:
    from gptcli.pages.compare_page import ComparedArm, compare_page
    from gptcli.pages.written import write

    compared = []
    for arm, shown in zip(arms, settings, strict=True):
        mean, interval = arm.mean_and_interval()
        text = samples.get(arm.name, "")
        compared.append(
            ComparedArm(
                arm.name, arm.curve(), arm.training_curve(), mean, interval, len(arm.runs),
                arm.first.seconds, arm.first.count("parameters"), shown,
                prompt + text if text else "",
            )
        )  # fmt: skip
    write(path, compare_page(title, compared, said))
    note(f"wrote {shell_word(path)}")


def _print_json(arms: list[Arm], problem: str | None) -> None:
    if problem is not None:
        for other in arms[1:]:
            print_json(
                {"a": arms[0].name, "b": other.name, "difference": None, "interval": None,
                 "seeds": 0, "verdict": problem}
            )  # fmt: skip
        return
    from gptcli.experiments.intervals import verdict

    for a, b, found in pairs_of(arms):
        print_json(
            {
                "a": a.name,
                "b": b.name,
                "difference": found.difference,
                "interval": list(found.interval) if found.interval else None,
                "seeds": found.seeds,
                "paired": found.paired,
                "more_than_noise": found.is_more_than_noise,
                "losses": {"a": a.losses(), "b": b.losses()},
                "verdict": verdict(a.name, b.name, found),
            }
        )


def _value(value: Any) -> str:
    from gptcli.view.paths import short_path

    return "-" if value is None else short_path(value) if isinstance(value, str) else str(value)
