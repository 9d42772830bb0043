"""`gptcli train --dry-run` for people."""

from __future__ import annotations

from typing import Any

from gptcli.view.number_formats import duration


def plan_lines(plan: dict[str, Any]) -> list[str]:
    """What a run would be and need, a figure a line."""
    return [
        f"parameters  {plan['parameters']:,} "
        f"({plan['parameters_without_embeddings']:,} without embeddings)",
        f"text        {plan['train_tokens']:,} tokens to train on, {plan['val_tokens']:,} to "
        f"validate on, {plan['vocab_size']:,} different",
        f"tokens      {plan['total_tokens']:,} in all, {plan['tokens_per_step']:,} a step "
        f"({plan['epochs']:.1f} epochs)",
        f"memory      about {plan['memory_bytes'] / 2**20:,.0f} MiB beyond the libraries' own",
        "time        not measured: it does not fit into this machine's memory"
        if plan["seconds_estimate"] is None
        else f"time        about {duration(plan['seconds_estimate'])} on this machine",
        f"machine     {plan['device']}, {plan['dtype']}"
        + (", compiled" if plan["compile"] else ""),
    ]
