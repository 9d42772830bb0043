"""Formats the lines that `gptcli train --dry-run` prints: parameters, tokens, memory and time."""

from __future__ import annotations

from typing import Any

from gptcli.plurals import counted
from gptcli.view.number_formats import duration


def dry_run_lines(plan: dict[str, Any]) -> list[str]:
    """The lines of a dry run. `plan` is the object that --json prints."""
    return [
        f"parameters  {plan['parameters']:,} "
        f"({plan['parameters_without_embeddings']:,} without embeddings)",
        *(
            [f"LoRA        {plan['adapter_parameters']:,} parameters are trained"]
            if plan["adapter_parameters"] is not None
            else []
        ),
        f"text        {counted(plan['train_tokens'], 'training token')}, "
        f"{counted(plan['val_tokens'], 'validation token')}; vocabulary {plan['vocab_size']:,}",
        f"tokens      {plan['total_tokens']:,} in all, {plan['tokens_per_step']:,} in each step "
        f"({plan['epochs']:.1f} epochs)",
        f"memory      about {plan['memory_bytes'] / 2**20:,.0f} MiB, not counting the libraries",
        "time        not measured, because the run does not fit into this machine's memory"
        if plan["seconds_estimate"] is None
        else f"time        about {duration(plan['seconds_estimate'])} on this machine"
        + (", without torch.compile" if plan["compile"] else ""),
        f"machine     {plan['device']}, {plan['dtype']}"
        + (", compiled" if plan["compile"] else ""),
        *(f"note        {line}" for line in plan["notes"]),
    ]
