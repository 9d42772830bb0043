"""`gptcli serve` in its own process, and clients that send HTTP requests to it."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass
class Reply:
    """A complete answer of the server."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body, read as JSON."""
        return json.loads(self.body)


class Server:
    """A process of `gptcli serve`. `stderr` collects the lines that the process prints."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.stderr: list[str] = []
        started = threading.Event()
        self.port = 0

        def read() -> None:
            assert process.stderr is not None
            for line in process.stderr:
                self.stderr.append(line)
                found = re.match(r"serving .* at http://.*:(\d+) ", line)
                if found:
                    self.port = int(found[1])
                    started.set()
            started.set()

        self._reader = threading.Thread(target=read)
        self._reader.start()
        assert started.wait(120)
        assert self.port, "".join(self.stderr)

    @property
    def url(self) -> str:
        """The address of the server."""
        return f"http://127.0.0.1:{self.port}"

    def ask(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> Reply:
        """Send one request and return the answer.

        `body` is bytes, or an object that is sent as JSON."""
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        with contextlib.closing(connection):
            connection.request(method, path, data, headers or {})
            answer = connection.getresponse()
            told = {name.lower(): value for name, value in answer.getheaders()}
            return Reply(answer.status, told, answer.read())

    def complete(self, **body: Any) -> Reply:
        """Send a request for a completion, and return the answer."""
        return self.ask("POST", "/v1/completions", body)

    def metric(self, name: str) -> float:
        """The value of the metric `name` at the address /metrics.

        The metric must have no labels."""
        text = self.ask("GET", "/metrics").body.decode()
        found = re.search(rf"^{name} (\S+)$", text, re.MULTILINE)
        assert found, text
        return float(found[1])

    def wait_until(self, condition: Callable[[], bool], seconds: float = 60.0) -> None:
        """Wait until `condition` returns true. Fail if it takes longer than `seconds`."""
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, f"too slow: {''.join(self.stderr)}"
            time.sleep(0.005)

    def health(self) -> Any:
        """The answer of /health, which needs no key."""
        return self.ask("GET", "/health").json

    def wait_until_idle(self) -> None:
        """Wait until the server writes no text and no text waits.

        The wait takes a moment, because the server notices a closed connection only at its next
        write to this connection."""
        self.wait_until(lambda: self.health() == {"status": "ok", "running": 0, "waiting": 0})

    def memory(self) -> int:
        """The bytes of memory that the server uses now. Works only on Linux."""
        status = Path(f"/proc/{self.process.pid}/status").read_text("utf-8")
        found = re.search(r"VmRSS:\s+(\d+) kB", status)
        assert found
        return int(found[1]) * 1024

    def has_connections(self) -> bool:
        """Whether a client is connected.

        Works only on Linux. Three open sockets are the server's own: one listens, and two wake the
        event loop."""
        sockets = 0
        for file in Path(f"/proc/{self.process.pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                sockets += str(file.readlink()).startswith("socket:")
        return sockets > 3

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal to the server, wait until it has ended, and return its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(60)
        finally:
            self.process.kill()
            self._reader.join()
            assert self.process.stderr is not None
            self.process.stderr.close()


_IMPATIENT = """
from gptcli.serving import application, server
application._LONGEST_BODY = server._PATIENCE = {seconds}
from gptcli.__main__ import main
main()
"""


@contextlib.contextmanager
def serving(*words: object, port: int = 0, patience: float | None = None) -> Iterator[Server]:
    """Run `gptcli serve WORDS` until the end of the `with` block.

    If a client neither sends nor reads for `patience` seconds, the server closes its connection."""
    start = ["-m", "gptcli"] if patience is None else ["-c", _IMPATIENT.format(seconds=patience)]
    command = [sys.executable, *start, "serve", *map(str, words), "--port", str(port)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    server = Server(process)
    try:
        yield server
    finally:
        server.stop(signal.SIGKILL)


def request(port: int, body: dict[str, Any], *, key: str = "") -> bytes:
    """The bytes of an HTTP request for a completion.

    It asks the server to close the connection after the answer."""
    data = json.dumps(body).encode()
    head = (
        f"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n"
        f"Authorization: Bearer {key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    )
    return head.encode() + data


async def exchange(port: int, data: bytes) -> Reply:
    """Send `data` to the server, wait until it has closed the connection, and return its answer.
    Raise ConnectionResetError if the server sent no answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(data)
        await writer.drain()
        answer = await reader.read(-1)
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
    if not answer:
        raise ConnectionResetError
    head, _, body = answer.partition(b"\r\n\r\n")
    status, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (x.partition(":") for x in lines)}
    if headers.get("transfer-encoding") == "chunked":
        body = _without_chunks(body)
    return Reply(int(status.split()[1]), headers, body)


def _without_chunks(data: bytes) -> bytes:
    parts = []
    while data:
        size, _, data = data.partition(b"\r\n")
        length = int(size, 16)
        parts.append(data[:length])
        data = data[length + 2 :]
    return b"".join(parts)


def events(body: bytes) -> list[dict[str, Any]]:
    """The events of a streamed answer, read as JSON. The answer must end with [DONE]."""
    parts = body.decode().split("\n\n")
    assert parts[-2:] == ["data: [DONE]", ""]
    return [json.loads(part.removeprefix("data: ")) for part in parts[:-2]]


def streamed_text(body: bytes) -> str:
    """The complete text of a streamed answer. The answer must have only one choice."""
    return "".join(one["text"] for event in events(body) for one in event["choices"])
