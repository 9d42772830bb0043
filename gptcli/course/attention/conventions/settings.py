"""The config that a learner's constructor gets. Code can read each setting under many names."""

from __future__ import annotations

from typing import Any

from gptcli.course.attention.conventions import words
from gptcli.errors import nearest

_NESTED = {"model", "attention", "attn", "gpt", "transformer", "block", "arch"}


class UnknownSetting(AttributeError):
    """A learner's code reads a setting that the config does not have."""


class LearnerConfig(dict[str, Any]):
    """Settings by attribute and by key: `config.n_embd`, `config["d_model"]`.

    A name of another convention gives the setting that it means: `d_model` gives n_embd. The error
    for an unknown name proposes a similar name, if there is one. `read` contains all names for
    which the learner's code has asked, also unknown ones."""

    read: set[str]

    def __init__(self, **values: Any) -> None:
        super().__init__(values)
        object.__setattr__(self, "read", set())

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        try:
            return self._value(name)
        except KeyError as unknown:
            raise UnknownSetting(unknown.args[0], name=name) from None

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value

    def __delattr__(self, name: str) -> None:
        del self[name]

    def __getitem__(self, name: str) -> Any:
        return self._value(name)

    def __contains__(self, name: object) -> bool:
        return super().__contains__(name) or words.is_exact(str(name))

    def get(self, name: str, default: Any = None) -> Any:
        """The value of a setting under any of its names; `default` if the name is unknown."""
        try:
            return self[name]
        except KeyError:
            return default

    def _value(self, name: str) -> Any:
        self.read.add(name)
        if super().__contains__(name):
            return super().__getitem__(name)
        if name in _NESTED:
            return self
        values = setting_values(self)
        meaning = words.meaning_of(name)
        if meaning in values:
            return values[meaning]
        have = ", ".join(self)
        like = nearest(name, self)
        ask = f"; did you mean `{like}`?" if like else ""
        raise KeyError(f"config has no `{name}`{ask} (it has {have})")


def setting_values(config: LearnerConfig) -> dict[str, Any]:
    """meaning -> value, for all settings that a constructor can read.

    `config` has n_embd and can have n_head, dropout, bias and block_size."""
    import torch

    known: dict[str, Any] = dict(config.items())
    values: dict[str, Any] = {
        words.VOCAB_SIZE: 65,
        words.N_LAYER: 2,
        words.LAYER_INDEX: 0,
        words.BATCH_SIZE: 2,
        words.HIDDEN_DIM: 4 * known.get("n_embd", 0),
        words.DEVICE: "cpu",
        words.DTYPE: torch.get_default_dtype(),
        words.EPS: 1e-5,
        words.INIT_STD: 0.02,
        words.ROPE_THETA: 10000.0,
        words.SWITCH: False,
        words.CAUSAL: True,
        words.BATCH_FIRST: True,
    }
    if "n_head" in known:
        values[words.N_KV_HEAD] = known["n_head"]
        values[words.HEAD_DIM] = known["n_embd"] // known["n_head"]
    return {**values, **known}
