"""Finds the first layer or parameter with NaN or infinity, after training has diverged."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from gptcli.model.gpt import GPT


def first_not_finite(model: GPT, batches: Iterable[tuple[Tensor, Tensor]]) -> str:
    """The place where NaN or infinity first appears, such as "the output of h.1.attn".

    Checks the weights first. Then repeats the forward and backward passes of `batches`. Checks the
    outputs of the layers in the forward pass, and the gradients after the backward pass, beginning
    with the last parameter. Returns "not found ..." if all these numbers are finite."""
    for name, parameter in model.named_parameters():
        if not bool(parameter.isfinite().all()):
            return f"the weight {name}"
    found: list[str] = []

    def look(name: str) -> Any:
        def hook(module: torch.nn.Module, inputs: object, output: object) -> None:
            if not found and isinstance(output, Tensor) and not bool(output.isfinite().all()):
                found.append(name or "the model's output")

        return hook

    handles = [module.register_forward_hook(look(name)) for name, module in model.named_modules()]
    try:
        for idx, targets in batches:
            model.zero_grad(set_to_none=True)
            loss = model.loss(idx, targets)
            if found:
                return f"the output of {found[0]}"
            if not bool(loss.isfinite()):
                return "the loss (the layers' outputs were finite)"
            loss.backward()  # type: ignore[no-untyped-call]
            for name, parameter in reversed(list(model.named_parameters())):
                if parameter.grad is not None and not bool(parameter.grad.isfinite().all()):
                    return f"the gradient of {name}"
    finally:
        for handle in handles:
            handle.remove()
        model.zero_grad(set_to_none=True)
    return "not found when the batch was computed again"
