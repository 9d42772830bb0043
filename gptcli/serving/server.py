"""Runs the application: the port, the end of slow connections, and what signals do."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import uvicorn
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from gptcli.errors import GptcliError

if TYPE_CHECKING:
    from gptcli.serving.application import Application
    from gptcli.serving.batching import Generator

_LONGEST_HEADERS = 30.0  # seconds; so long can a client take to send the lines of a request
_KEEP_ALIVE = 30  # seconds that a connection stays open between two requests
_MOST_CONNECTIONS = 2000
_LONGEST_DRAIN = 30  # seconds in which running texts can be completed at the end
_SWITCH_INTERVAL = 0.0005  # seconds; so long can a thread wait for Python (its usual value: 0.005)


class _Protocol(AutoHTTPProtocol):  # type: ignore[misc]
    """uvicorn's protocol. Closes connections that send no complete request.

    The application gets the transport, to cut a connection that does not read its answer."""

    _deadline: asyncio.TimerHandle | None = None
    app_state: dict[str, Any]

    def connection_made(self, transport: asyncio.Transport) -> None:
        """As in asyncio.Protocol."""
        super().connection_made(transport)
        self.app_state = {**self.app_state, "transport": transport}
        self._watch()

    def data_received(self, data: bytes) -> None:
        """As in asyncio.Protocol."""
        super().data_received(data)
        self._watch()

    def connection_lost(self, error: Exception | None) -> None:
        """As in asyncio.Protocol."""
        super().connection_lost(error)
        if self._deadline is not None:
            self._deadline.cancel()

    def _watch(self) -> None:
        """Set a deadline while no request is complete, and remove it when one is."""
        is_idle = self.cycle is None or self.cycle.response_complete
        if is_idle and self._deadline is None:
            self._deadline = self.loop.call_later(_LONGEST_HEADERS, self._close)
        elif not is_idle and self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _close(self) -> None:
        self._deadline = None
        if self.cycle is None or self.cycle.response_complete:
            self.transport.abort()


class _Server(uvicorn.Server):  # type: ignore[misc]
    """uvicorn's server. The first signal completes what runs, the second ends at once."""

    def __init__(
        self, config: uvicorn.Config, started: Callable[[], None], drain: Callable[[], None]
    ) -> None:
        super().__init__(config)
        self._started, self._drain = started, drain
        self.should_exit = self.force_exit = False
        self.signals: list[int] = []

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle signals until the server has ended. uvicorn would raise them again then."""
        numbers = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, self._signal) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _signal(self, number: int, frame: object) -> None:
        self.signals.append(number)
        self.force_exit = self.should_exit
        self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """As in uvicorn. Then says that requests are taken."""
        await super().startup(sockets)
        self._started()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """As in uvicorn. First refuses the texts that wait."""
        self._drain()
        await super().shutdown(sockets)


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens there. Port 0 is any free one. Raises GptcliError (exit code 1)."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except OSError as error:
        raise GptcliError(
            f"cannot listen on {host} port {port}: {error.strerror}",
            "name another --port; 0 takes any free one",
            exit_code=1,
        ) from None
    return listener


def serve(
    application: Application,
    generator: Generator,
    listener: socket.socket,
    started: Callable[[], None],
) -> int:
    """Serve until a signal comes. Returns the exit code: 0 after SIGTERM, 130 after Ctrl-C.

    Calls `started` when requests are taken."""
    sys.setswitchinterval(_SWITCH_INTERVAL)
    config = uvicorn.Config(
        application.asgi,
        http=_Protocol,
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="critical",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=_MOST_CONNECTIONS,
        timeout_keep_alive=_KEEP_ALIVE,
        timeout_graceful_shutdown=_LONGEST_DRAIN,
    )

    def drain() -> None:
        application.is_ending = True
        generator.drain()

    server = _Server(config, started, drain)

    async def run() -> None:
        generator.start(asyncio.get_running_loop())
        await server.serve([listener])

    try:
        asyncio.run(run())
    finally:
        generator.end()
    return 130 if server.signals[:1] == [signal.SIGINT] else 0
