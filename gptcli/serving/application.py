"""The server as an ASGI application: its paths, access to them, and errors in OpenAI's form."""

from __future__ import annotations

import asyncio
import hmac
import sys
import traceback
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import anyio
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gptcli.serving.batching import Generator
from gptcli.serving.completion import Completion
from gptcli.serving.completion_request import read_request
from gptcli.serving.metrics import Metrics
from gptcli.serving.models import ServedModels
from gptcli.serving.refusal import RETRY_AFTER, Refusal, overloaded

_OPEN = ("/", "/health")  # paths that need no key
_LOCAL = ("localhost", "127.0.0.1", "::1")
_LONGEST_BODY = 30.0  # seconds in which a client must have sent the body of its request
_LONG_BODY = 1 << 14  # bytes; a longer body is parsed in a thread, so that answers go on
_MOST_BODY_BYTES = 64 << 20  # the most bytes of all bodies that are being received
_PAGE_HEADERS = {
    # The page loads nothing from anywhere, and no other page can show it in a frame.
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline'; connect-src 'self'; form-action 'none'; frame-ancestors 'none'; "
    "base-uri 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}


@dataclass(frozen=True)
class Limits:
    """The limits of a request, and the clients that may send one."""

    most_tokens: int
    """The largest number of tokens that a prompt and its continuation can have together."""
    most_body_bytes: int
    api_keys: Sequence[str] = ()
    origins: Sequence[str] = ()
    """The origins of other web pages that may use the server; `*` for all."""
    only_local: bool = False
    """True if the server answers only requests that name localhost, 127.0.0.1 or ::1 as host."""


class Application:
    """The ASGI application of a server."""

    def __init__(
        self, models: ServedModels, generator: Generator, metrics: Metrics, limits: Limits
    ) -> None:
        self._models, self._generator = models, generator
        self._metrics, self._limits = metrics, limits
        self._body_bytes = 0
        self._reading = asyncio.Lock()
        self.is_ending = False
        """True if the server is shutting down, which `/health` reports."""
        routes = [
            Route("/", self._page),
            Route("/health", self._health),
            Route("/metrics", self._metrics_text),
            Route("/v1/models", self._list),
            Route("/v1/models/{name:path}", self._one_model),
            Route("/v1/completions", self._complete, methods=["POST"]),
            Route("/v1/chat/completions", _no_chat, methods=["GET", "POST"]),
        ]
        inner = Starlette(
            routes=routes,
            exception_handlers={
                Refusal: _answer_refusal,
                HTTPException: _answer_http_error,
                Exception: _answer_bug,
            },
        )
        app: ASGIApp = self._guarded(inner)
        if limits.origins:
            app = CORSMiddleware(
                app,
                allow_origins=list(limits.origins),
                allow_methods=["GET", "POST"],
                allow_headers=["*"],
            )
        self.asgi = self._counted(app)
        self._html = (Path(__file__).parent / "page.html").read_text("utf-8")

    # ---- around all paths ----------------------------------------------------------------

    def _counted(self, app: ASGIApp) -> ASGIApp:
        """Wrap the application so that answers are counted by path and status."""

        async def counting(scope: Scope, receive: Receive, send: Send) -> None:
            async def sending(message: Message) -> None:
                if message["type"] == "http.response.start":
                    path = scope["path"] if scope["path"] in _KNOWN_PATHS else "other"
                    self._metrics.answers[path, message["status"]] += 1
                await send(message)

            await app(scope, receive, sending)

        return counting

    def _guarded(self, app: ASGIApp) -> ASGIApp:
        """Wrap the application: refuse requests without a valid key or of other web pages."""

        async def guarding(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "http":
                headers = Headers(scope=scope)
                try:
                    self._refuse_other_pages(headers)
                    if scope["path"] not in _OPEN:
                        self._refuse_without_key(headers)
                except Refusal as refusal:
                    await _refused(refusal)(scope, receive, send)
                    return
            await app(scope, receive, send)

        return guarding

    def _refuse_without_key(self, headers: Headers) -> None:
        keys = self._limits.api_keys
        given = headers.get("authorization", "").removeprefix("Bearer ").strip()
        if not keys:
            return
        if not given:
            raise Refusal(
                401,
                "You did not provide an API key. Send the header `Authorization: Bearer KEY`.",
                code="missing_api_key",
            )
        if not any(hmac.compare_digest(given.encode(), key.encode()) for key in keys):
            raise Refusal(401, "Incorrect API key provided.", code="invalid_api_key")

    def _refuse_other_pages(self, headers: Headers) -> None:
        """Raise Refusal (403) for a web page of another origin, unless the origin is allowed.

        A page that the user visits must not use a server on the user's machine. The browser sends
        the page's origin with each POST request. If the page's host name points to this machine
        (DNS rebinding), the page's requests have this name as host. So a local server without a
        key answers only requests that name a host in _LOCAL."""
        host = urlsplit(f"//{headers.get('host', '')}")
        try:
            name = host.hostname
        except ValueError:
            name = None
        if self._limits.only_local and name not in _LOCAL:
            raise Refusal(403, "This server answers only requests to localhost.", code="wrong_host")
        origin = headers.get("origin")
        allowed = self._limits.origins
        if origin is None or "*" in allowed or origin in allowed:
            return
        if urlsplit(origin).netloc != headers.get("host"):
            raise Refusal(
                403,
                "Web pages of other origins may not use this server. `--allow-origin` allows an "
                "origin.",
                code="origin_not_allowed",
            )

    # ---- paths ---------------------------------------------------------------------------

    async def _page(self, request: Request) -> Response:
        return HTMLResponse(self._html, headers=_PAGE_HEADERS)

    async def _health(self, request: Request) -> Response:
        if self.is_ending or not self._generator.is_alive():
            raise overloaded("the server is shutting down")
        running, waiting = self._generator.counts()
        return JSONResponse({"status": "ok", "running": running, "waiting": waiting})

    async def _metrics_text(self, request: Request) -> Response:
        text = self._metrics.text(*self._generator.counts())
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4; charset=utf-8")

    async def _list(self, request: Request) -> Response:
        data = [model.description() for model in self._models]
        return JSONResponse({"object": "list", "data": data})

    async def _one_model(self, request: Request) -> Response:
        return JSONResponse(self._models.named(request.path_params["name"]).description())

    async def _complete(self, request: Request) -> Completion:
        body = await self._body(request)
        client: Hashable = None
        if request.client is not None:  # clients on this machine have the same host
            host, port = request.client
            client = (host, port) if host in _LOCAL else host

        def read() -> Completion:
            wanted = read_request(body)
            return Completion(
                wanted,
                self._models.named(wanted.model),
                self._generator,
                self._metrics,
                client=("user", request.client and request.client[0], wanted.user)
                if wanted.user
                else client,
                most_tokens=self._limits.most_tokens,
            )

        async with self._reading:  # a user's tokenizer is perhaps not thread-safe
            if len(body) < _LONG_BODY:
                completion = read()
            else:
                completion = await asyncio.to_thread(read)
        completion.submit()
        return completion

    async def _body(self, request: Request) -> bytes:
        """The body of a request.

        Raises Refusal if the body is too large, late or incomplete, or if the bodies that the
        server is receiving are too large together."""
        most = self._limits.most_body_bytes
        length = request.headers.get("content-length", "0")
        too_large = Refusal(413, f"The body is larger than {most} bytes.", code="request_too_large")
        if length.isdecimal() and int(length) > most:
            raise too_large
        parts: list[bytes] = []
        size = 0
        try:
            with anyio.fail_after(_LONGEST_BODY):
                async for part in request.stream():
                    parts.append(part)
                    size += len(part)
                    self._body_bytes += len(part)
                    if size > most:
                        raise too_large
                    if self._body_bytes > _MOST_BODY_BYTES:
                        raise overloaded("too many requests are being received")
        except TimeoutError:
            raise Refusal(408, "The body of the request did not come in time.") from None
        except ClientDisconnect:
            raise Refusal(400, "The client left before the body was complete.") from None
        finally:
            self._body_bytes -= size
        return b"".join(parts)


_KNOWN_PATHS = ("/", "/health", "/metrics", "/v1/models", "/v1/completions")


async def _no_chat(request: Request) -> Response:
    raise Refusal(
        404,
        "These models continue texts and do not chat. Use /v1/completions "
        "(client.completions.create).",
        code="unsupported_endpoint",
    )


def _refused(refusal: Refusal) -> Response:
    headers = {}
    if refusal.status == 503:
        headers["retry-after"] = str(RETRY_AFTER)
    if refusal.status == 401:
        headers["www-authenticate"] = "Bearer"
    if refusal.status in (408, 413):
        headers["connection"] = "close"  # because the rest of the body is not read
    return JSONResponse(refusal.body(), refusal.status, headers)


async def _answer_refusal(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refusal)
    return _refused(error)


async def _answer_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 404:
        return _refused(
            Refusal(404, f"Unknown path: {request.method} {request.url.path}", code="unknown_url")
        )
    if error.status_code == 405:
        refusal = Refusal(405, f"{request.url.path} does not take {request.method}.")
        answer = _refused(refusal)
        answer.headers.update(error.headers or {})
        return answer
    return _refused(Refusal(error.status_code, str(error.detail)))


async def _answer_bug(request: Request, error: Exception) -> Response:
    traceback.print_exception(error, file=sys.stderr)
    return _refused(Refusal(500, "The server failed.", code="internal_error"))
