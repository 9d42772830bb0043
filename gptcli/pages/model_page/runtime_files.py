"""Joins the JavaScript files of runtime/ and view/ for a page, in the order that they need."""

from __future__ import annotations

from gptcli.pages.inlining import asset

_NETWORK = ("payload", "tokenizer", "kernels", "network", "text", "sampler")
_VIEW = ("elements", "engine", "writing", "tokens", "attention", "steps", "lens", "main")


def network_script() -> str:
    """The script that a proof and the page's worker share: it computes the next token."""
    return _joined("runtime", _NETWORK)


def proof_script() -> str:
    """The script for a proof: the runtime and the function `prove`."""
    return network_script() + _joined("runtime", ("prove",))


def worker_script() -> str:
    """The script of a page's Web Worker."""
    return '"use strict";\n' + network_script() + _joined("runtime", ("inspect", "worker"))


def view_script() -> str:
    """The script of the page's own thread, which draws."""
    return _joined("view", _VIEW)


def _joined(folder: str, names: tuple[str, ...]) -> str:
    return "".join(f"{asset(f'model_page/{folder}/{name}.js')}\n" for name in names)
