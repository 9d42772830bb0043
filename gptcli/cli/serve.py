"""`gptcli serve`: answers requests for completions over HTTP, with OpenAI's interface."""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Annotated

import typer

from gptcli.cli.option_groups import with_option_groups
from gptcli.cli.options import SamplingModelOptions, load_for_sampling
from gptcli.cli.output import note
from gptcli.errors import GptcliError
from gptcli.view.waiting import waiting

if TYPE_CHECKING:
    from gptcli.api.loading import SamplingModel

KEY_VARIABLE = "GPTCLI_API_KEY"
_PACKAGES = ("starlette", "uvicorn", "httptools")
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class AddressOptions:
    """Where the server listens, and who may use it."""

    host: Annotated[
        str,
        typer.Option(
            "--host",
            metavar="HOST",
            help="The address to listen on. 0.0.0.0: all networks of this machine.",
        ),
    ] = "127.0.0.1"
    port: Annotated[
        int,
        typer.Option(
            "--port", metavar="PORT", min=0, max=65535, help="The port. 0: any free port."
        ),
    ] = 8000
    api_key: Annotated[
        list[str] | None,
        typer.Option(
            "--api-key",
            metavar="KEY",
            help="Every request must have this key, except requests for / and /health. You "
            "can repeat this option. "
            f"Default: ${KEY_VARIABLE}, which other users of the machine do not see.",
        ),
    ] = None
    allow_origin: Annotated[
        list[str] | None,
        typer.Option(
            "--allow-origin",
            metavar="ORIGIN",
            help="Let web pages from this origin, such as https://example.org, use the server. You "
            "can repeat this option. *: all pages.",
        ),
    ] = None


@dataclass(frozen=True)
class LimitOptions:
    """The limits of the server: how many texts, how long, how much waiting, how large a request."""

    streams: Annotated[
        int,
        typer.Option(
            "--streams",
            metavar="N",
            min=1,
            max=256,
            help="Generate at most N texts together, for each run.",
        ),
    ] = 72
    max_length: Annotated[
        int,
        typer.Option(
            "--max-length",
            metavar="N",
            min=1,
            help="Allow at most N tokens for a prompt and its completion together.",
        ),
    ] = 4096
    max_queue: Annotated[
        int,
        typer.Option(
            "--max-queue",
            metavar="N",
            min=0,
            help="Let texts wait for their turn, at most N plus the value of --streams.",
        ),
    ] = 1024
    max_wait: Annotated[
        float,
        typer.Option(
            "--max-wait", metavar="SECONDS", min=0.0, help="Let a text wait at most this long."
        ),
    ] = 60.0
    max_body: Annotated[
        int,
        typer.Option(
            "--max-body", metavar="BYTES", min=1, help="Allow requests of at most this size."
        ),
    ] = 1 << 20


@with_option_groups
def serve(
    runs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[RUN ...]",
            help="Run folders, or their names under runs/. Default: the newest.",
        ),
    ] = None,
    *,
    address: AddressOptions,
    limits: LimitOptions,
    options: SamplingModelOptions,
) -> None:
    """Answer requests for completions over HTTP.

    The interface is OpenAI's: /v1/completions, with streaming, and /v1/models. The address / shows
    a page to try the model. The server generates several texts together. Each text is the same as
    `gptcli sample` writes with the same seed. After Ctrl-C or SIGTERM, the server completes the
    texts that it is generating, in at most 30 seconds. A second signal ends the server at once."""
    missing = [name for name in _PACKAGES if find_spec(name) is None]
    if missing:
        raise GptcliError(
            f"`gptcli serve` needs packages that are not installed: {', '.join(missing)}",
            f"pip install {' '.join(_PACKAGES)}",
            exit_code=1,
        )
    from gptcli.serving.server import bind

    with bind(address.host, address.port) as listener:  # open the port before loading the models
        with waiting("loading the model"):
            names: list[str | None] = [*runs] if runs else [None]
            models = [load_for_sampling(name, options, "serve") for name in names]
        code = _serve(models, address, limits, listener)
    raise typer.Exit(code)


def _serve(
    loaded: list[SamplingModel], address: AddressOptions, limits: LimitOptions, listener: object
) -> int:
    """Serve the models until the process gets a signal. Returns the exit code."""
    import socket

    from gptcli.serving.application import Application, Limits
    from gptcli.serving.batching import Batch, Generator
    from gptcli.serving.metrics import Metrics
    from gptcli.serving.models import ServedModels
    from gptcli.serving.prompt_scores import PromptScorer
    from gptcli.serving.server import serve as serve_until_signal
    from gptcli.serving.slots import open_slots

    assert isinstance(listener, socket.socket)
    keys = address.api_key or [key for key in [os.environ.get(KEY_VARIABLE)] if key]
    is_loopback = address.host in _LOOPBACK
    models, metrics = ServedModels(loaded), Metrics()
    batches = {
        model.name: Batch(
            open_slots(model.loaded, limits.streams),
            model.loaded.trained.tokenizer,
            PromptScorer(model.loaded),
        )
        for model in models
    }
    generator = Generator(
        batches,
        metrics,
        most_waiting=limits.max_queue,
        longest_wait=limits.max_wait,
        most_kept=max(4096, limits.max_length) * 1024,
    )
    application = Application(
        models,
        generator,
        metrics,
        Limits(
            most_tokens=limits.max_length,
            most_body_bytes=limits.max_body,
            api_keys=keys,
            origins=address.allow_origin or [],
            only_local=is_loopback and not keys,
        ),
    )
    host = f"[{address.host}]" if ":" in address.host else address.host
    url = f"http://{host}:{listener.getsockname()[1]}"

    def started() -> None:
        note(f"serving {', '.join(model.name for model in models)} at {url} (Ctrl-C ends)")
        if not is_loopback and not keys:
            note(
                "note: everybody who can reach this machine can use the server; --api-key sets a "
                "key"
            )

    return serve_until_signal(application, generator, listener, started)
