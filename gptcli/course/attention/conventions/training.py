"""Lets gptcli train with an attention in any known convention: `gptcli train --attention FILE`."""

from __future__ import annotations

import contextlib
import io
from typing import Any

import torch
from torch import Tensor, nn

from gptcli.course.attention.cases import USUAL, config_for
from gptcli.course.attention.conventions.layout import Sizes
from gptcli.course.attention.conventions.settings import LearnerConfig
from gptcli.course.attention.learner_attention import LearnerAttention
from gptcli.course.attention.projections import ProjectionError
from gptcli.course.exercises.cache_class import CachedFile
from gptcli.course.lesson import CheckFailed
from gptcli.course.sandbox.learner_class import class_in
from gptcli.course.sandbox.learner_file import LearnerFile
from gptcli.course.sandbox.running import run_file
from gptcli.errors import GptcliError

_FIELDS = ("n_embd", "n_head", "dropout", "bias", "block_size")


class AdaptedAttention(nn.Module):
    """A module that lets gptcli call a learner's attention in the course's convention.

    forward(x) needs no other arguments, and returns only the output."""

    def __init__(self, learner: LearnerAttention, config: Any) -> None:
        super().__init__()
        own = LearnerConfig(**{name: getattr(config, name) for name in _FIELDS})
        self.attention = learner.construct(own)
        self._learner = [learner]  # in a list, so that it is not a submodule

    def forward(self, x: Tensor) -> Tensor:
        """The output (B, T, C) for x (B, T, C)."""
        y: Tensor = self._learner[0].forward(self.attention, x)
        return y


class UserAttention:
    """A learner's attention file for training. Runs the file in the current process.

    Raises GptcliError if the file has no attention class or cannot be run."""

    def __init__(self, file: LearnerFile) -> None:
        self._module = run_file(file)
        self.learner = LearnerAttention(file, class_in(file, self._module), lambda doing: None)
        self._is_plain = self.learner.constructor.is_course_form and self._tried_as_plain()
        if not self._is_plain:
            self._recognise()

    def make(self, config: Any) -> nn.Module:
        """A new attention for a ModelConfig: of the learner's class, or an AdaptedAttention."""
        if self._is_plain:
            module: nn.Module = self.learner.cls(config)
            return module
        return AdaptedAttention(self.learner, config)

    def cache(self) -> CachedFile | None:
        """The learner's key/value cache; None if the file has none that its attention can use.

        Also None if the attention needs an AdaptedAttention. Raises GptcliError if the class of the
        cache lacks a method, or if forward does not take the cache directly after x."""
        if not self._is_plain:
            return None
        return CachedFile.of(self.learner.file, self._module, self.learner.cls)

    def matrices(self, module: nn.Module, n_embd: int, n_head: int) -> list[Tensor] | None:
        """Views of the (C, C) query, key, value and output weights of a module that `make` made.

        None if one of the four is missing or not recognised, or if one of them is not a view of the
        module's parameters."""
        inner = module.attention if isinstance(module, AdaptedAttention) else module
        assert isinstance(inner, nn.Module)
        try:
            self._recognise()
            found = self.learner.layout().projections(inner, Sizes(n_embd, n_head))
        except (CheckFailed, ProjectionError, GptcliError):
            return None
        if any(part.views for _, part in found.items()) or not self.learner.layout().has_output:
            return None
        return [part.weight for _, part in found.items()]

    def _tried_as_plain(self) -> bool:
        """Whether the network can use the learner's class itself, without an AdaptedAttention.

        The network can use the class if the class reads only names of `_FIELDS` from config, and if
        forward(x) returns the output. To find out, makes a module and calls its forward on zeros.
        Also returns true if the class raises an error: the network's own error is clearer."""
        config = config_for(USUAL)
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        try:
            with torch.no_grad(), contextlib.redirect_stdout(io.StringIO()):
                module = self.learner.construct(config).eval()
                self.learner.forward(module, torch.zeros(1, 2, USUAL.C))
        except Exception:
            return True
        finally:
            torch.set_default_dtype(before)
        return config.read <= {*_FIELDS} and self.learner.is_called_with_x

    def _recognise(self) -> None:
        """Find the projections and the kind of mask, if possible. Runs the class in float64."""
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                self.learner.layout()
        except (CheckFailed, GptcliError):
            return  # `gptcli train --force` also trains with a class that is not recognised
        finally:
            torch.set_default_dtype(before)
