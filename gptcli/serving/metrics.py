"""Counts the server's answers, tokens and times, and writes them in Prometheus' text format.

Source: https://prometheus.io/docs/instrumenting/exposition_formats/, version 0.0.4.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Histogram:
    """Counts durations: for each bound in _SECONDS, the durations that are at most this bound."""

    def __init__(self) -> None:
        self.buckets = [0] * len(_SECONDS)
        self.sum, self.count = 0.0, 0

    def add(self, seconds: float) -> None:
        """Add a duration to the histogram."""
        self.sum += seconds
        self.count += 1
        for i, bound in enumerate(_SECONDS):
            self.buckets[i] += seconds <= bound

    def lines(self, name: str, model: str) -> Iterator[str]:
        """The lines of this histogram in Prometheus' format, with the label `model`."""
        label = f"model={_quoted(model)}"
        for bound, count in zip((*_SECONDS, "+Inf"), (*self.buckets, self.count), strict=True):
            yield f'{name}_bucket{{{label},le="{bound}"}} {count}'
        yield f"{name}_sum{{{label}}} {self.sum:.6f}"
        yield f"{name}_count{{{label}}} {self.count}"


class Metrics:
    """The counts since the server started.

    The method `text` also writes how many texts are generated now, and how many wait."""

    def __init__(self) -> None:
        self.answers: Counter[tuple[str, int]] = Counter()  # by (path, status)
        self.prompt_tokens: Counter[str] = Counter()  # by model
        self.new_tokens: Counter[str] = Counter()
        self.first_token: dict[str, Histogram] = {}
        self.complete: dict[str, Histogram] = {}
        self.disconnected = 0
        self.steps = 0

    def took(self, table: dict[str, Histogram], model: str, seconds: float) -> None:
        """Add a duration to the histogram of `model` in `table`: `first_token` or `complete`."""
        table.setdefault(model, Histogram()).add(seconds)

    def text(self, running: int, waiting: int) -> str:
        """All counts in Prometheus' text format."""
        lines: list[str] = []

        def add(name: str, kind: str, help: str, samples: Iterator[str]) -> None:
            lines.extend((f"# HELP {name} {help}", f"# TYPE {name} {kind}", *samples))

        def by_model(name: str, counts: Counter[str]) -> Iterator[str]:
            for model, count in counts.items():
                yield f"{name}{{model={_quoted(model)}}} {count}"

        def histograms(name: str, table: dict[str, Histogram]) -> Iterator[str]:
            for model, histogram in table.items():
                yield from histogram.lines(name, model)

        name = "gptcli_http_responses_total"
        add(name, "counter", "HTTP responses by path and status.", (
            f'{name}{{path={_quoted(path)},status="{status}"}} {count}'
            for (path, status), count in self.answers.items()
        ))  # fmt: skip
        for name, help, counts in (
            ("gptcli_prompt_tokens_total", "Tokens of prompts.", self.prompt_tokens),
            ("gptcli_generated_tokens_total", "Generated tokens.", self.new_tokens),
        ):
            add(name, "counter", help, by_model(name, counts))
        for name, help, number in (
            ("gptcli_disconnected_total", "Requests whose client left early.", self.disconnected),
            ("gptcli_steps_total", "Calls that read prompts or generate tokens.", self.steps),
        ):
            add(name, "counter", help, iter([f"{name} {number}"]))
        for name, help, number in (
            ("gptcli_texts_running", "Texts that are generated now.", running),
            ("gptcli_texts_waiting", "Texts that wait for a slot.", waiting),
        ):
            add(name, "gauge", help, iter([f"{name} {number}"]))
        for name, help, table in (
            ("gptcli_first_token_seconds", "From request to first token.", self.first_token),
            ("gptcli_request_seconds", "From request to last token.", self.complete),
        ):
            add(name, "histogram", help, histograms(name, table))
        return "\n".join(lines) + "\n"


def _quoted(value: str) -> str:
    """A label's value in quotes, escaped for Prometheus."""
    escaped = value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
    return f'"{escaped}"'
