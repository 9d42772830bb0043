"""Runs the application: opens the port, closes slow connections, and handles signals."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from gptcli.errors import GptcliError

if TYPE_CHECKING:
    from gptcli.serving.application import Application
    from gptcli.serving.batching import Generator

_PATIENCE = 30.0  # seconds for a request's headers, and between two requests of a connection
_READ_PARTS = 20  # a slow client must read 1/20 of its answer in _PATIENCE seconds
_SEND_BUFFER = 1 << 18  # bytes of an answer that the system buffers until the client reads
_MOST_HEADER_BYTES = 1 << 18  # the most bytes of a request, not counting its body
_MOST_PIPELINED = 8  # requests that a client can send before it has the answers
_MOST_CONNECTIONS = 2000
_LONGEST_DRAIN = 30  # seconds in which running texts can be completed at the shutdown
_SWITCH_INTERVAL = 0.0005  # seconds that a thread waits for Python's lock (default: 0.005)


class _Protocol(HttpToolsProtocol):  # type: ignore[misc]
    """uvicorn's protocol. Closes connections that send no request in time or read no answer."""

    _timer: asyncio.TimerHandle | None = None
    _has_asked = False  # True if a request came since the last check
    _stalled: tuple[int, int] | None = None  # unsent bytes at the first check and at the newest one
    _header_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:
        """As in asyncio.Protocol. Closes the connection if there are too many connections."""
        super().connection_made(transport)
        self._timer = self.loop.call_later(_PATIENCE, self._check)
        if len(self.connections) > _MOST_CONNECTIONS:
            transport.abort()

    def data_received(self, data: bytes) -> None:
        """As in asyncio.Protocol. Closes connections with too long headers or too many requests."""
        self._header_bytes += len(data)
        super().data_received(data)
        if self._header_bytes > _MOST_HEADER_BYTES or len(self.pipeline) > _MOST_PIPELINED:
            self.transport.abort()

    def on_message_begin(self) -> None:
        """As in httptools."""
        self._header_bytes = 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """As in httptools."""
        self._has_asked = True
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """As in httptools."""
        self._header_bytes -= len(body)
        super().on_body(body)

    def resume_writing(self) -> None:
        """As in asyncio.Protocol: the client reads again."""
        self._stalled = None
        super().resume_writing()

    def connection_lost(self, error: Exception | None) -> None:
        """As in asyncio.Protocol."""
        super().connection_lost(error)
        if self._timer is not None:
            self._timer.cancel()

    def _check(self) -> None:
        """Close the connection if the client reads its answer too slowly, or sends no request."""
        self._timer = self.loop.call_later(_PATIENCE, self._check)
        is_answered = self.cycle is None or self.cycle.response_complete
        unsent = self.transport.get_write_buffer_size()
        if unsent and (is_answered or self.flow.write_paused):
            first, last = self._stalled or (unsent, math.inf)
            if unsent > last - first / _READ_PARTS:
                self.transport.abort()
            self._stalled = (first, unsent)
        elif is_answered and not self._has_asked:
            self.transport.abort()
        self._has_asked = False


class _Server(uvicorn.Server):  # type: ignore[misc]
    """uvicorn's server. After a signal, it completes the texts that are being generated, then ends.
    A second signal ends it at once."""

    def __init__(
        self, config: uvicorn.Config, started: Callable[[], None], drain: Callable[[], None]
    ) -> None:
        super().__init__(config)
        self._started, self._drain = started, drain
        self.should_exit = self.force_exit = False
        self.signals: list[int] = []

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle signals until the server ends.

        uvicorn would then raise the signals again. This method does not."""
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
        """Start as in uvicorn, then report that the server takes requests."""
        await super().startup(sockets)
        self._started()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Refuse the texts that wait, then shut down as in uvicorn."""
        self._drain()
        await super().shutdown(sockets)


def bind(host: str, port: int) -> socket.socket:
    """A socket that is bound to host and port; port 0 is any free port.

    Raises GptcliError (exit code 1) if no socket can be bound."""
    listener = None
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        if os.name == "posix":  # on Windows, this would let two programs share a port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Connections inherit this limit. Without it, the kernel keeps megabytes for each slow
        # reader.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
        listener.bind((host, port))
    except OSError as error:
        if listener is not None:
            listener.close()
        raise GptcliError(
            f"cannot listen on {host} port {port}: {error.strerror}",
            "name another --port; 0 takes any free port",
            exit_code=1,
        ) from None
    return listener


def _allow_connections() -> None:
    """Let this process open as many files as the server can have connections."""
    try:
        import resource
    except ImportError:  # Windows
        return
    wanted = _MOST_CONNECTIONS + 256
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def serve(
    application: Application,
    generator: Generator,
    listener: socket.socket,
    started: Callable[[], None],
) -> int:
    """Serve until a signal comes. Returns the exit code: 0 after SIGTERM, 130 after Ctrl-C.

    Calls `started` when the server takes requests."""
    sys.setswitchinterval(_SWITCH_INTERVAL)
    _allow_connections()
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
        timeout_keep_alive=int(_PATIENCE),
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
