"""Finds the shipped configs and texts, either inside the wheel or at the top of a git checkout."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent.parent


def shipped_folder(name: str) -> Path:
    """The path of the shipped folder `name` ("configs" or "data") in this installation."""
    inside_wheel = _PACKAGE / "shipped" / name
    return inside_wheel if inside_wheel.is_dir() else _PACKAGE.parent / name


def shipped_configs() -> dict[str, Path]:
    """Name -> path of every shipped YAML config, sorted by name."""
    return {path.stem: path for path in sorted(shipped_folder("configs").glob("*.yaml"))}


def shipped_texts() -> dict[str, Path]:
    """Name -> path of every shipped training text, sorted by name."""
    return {
        path.stem: path
        for path in sorted(shipped_folder("data").glob("*.txt"))
        if not path.stem.endswith("-LICENSE")
    }
