"""gptcli: train, sample and check tiny GPTs from the command line and from Python.

    import gptcli

    for event in gptcli.train("my.txt", minutes=1): ...
    model = gptcli.load()
    print(model.generate("KING", max_new_tokens=100))

`__all__` lists the public names, and docs/library.md explains them. A name is imported when it is
first used, so that `import gptcli` itself takes little time.
"""

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from gptcli.api.model import Model, load
    from gptcli.api.scoring import Score
    from gptcli.api.training import Training, train
    from gptcli.config import Config
    from gptcli.course.verdict import Verdict, check
    from gptcli.errors import GptcliError
    from gptcli.events import (
        CheckpointSaved,
        Evaluated,
        Event,
        Finished,
        Notice,
        Replanned,
        RunStarted,
        SampleDrawn,
        StepDone,
    )
    from gptcli.model.attention import CausalSelfAttention
    from gptcli.tokenization.tokenizer import Tokenizer

__all__ = [
    "CausalSelfAttention",
    "CheckpointSaved",
    "Config",
    "Evaluated",
    "Event",
    "Finished",
    "GptcliError",
    "Model",
    "Notice",
    "Replanned",
    "RunStarted",
    "SampleDrawn",
    "Score",
    "StepDone",
    "Tokenizer",
    "Training",
    "Verdict",
    "check",
    "load",
    "train",
]

_HOMES = {
    "gptcli.api.model": ("Model", "load"),
    "gptcli.api.scoring": ("Score",),
    "gptcli.api.training": ("Training", "train"),
    "gptcli.config": ("Config",),
    "gptcli.course.verdict": ("Verdict", "check"),
    "gptcli.errors": ("GptcliError",),
    "gptcli.events": (
        "CheckpointSaved",
        "Evaluated",
        "Event",
        "Finished",
        "Notice",
        "Replanned",
        "RunStarted",
        "SampleDrawn",
        "StepDone",
    ),
    "gptcli.model.attention": ("CausalSelfAttention",),
    "gptcli.tokenization.tokenizer": ("Tokenizer",),
}
"""Module -> the public names that it defines."""


def __getattr__(name: str) -> object:
    """The public object `name`. Python calls this function when a name is first used."""
    for home, names in _HOMES.items():
        if name in names:
            value: object = getattr(import_module(home), name)
            globals()[name] = value
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
