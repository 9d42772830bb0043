"""`gptcli serve` under attack: too many clients at once, clients that are slow or silent or send
invalid requests, and kill -9.

No request hangs, the memory stays bounded, and all normal clients get their texts.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.serving.serving_process import Server, exchange, request, serving, streamed_text

for package in ("starlette", "uvicorn", "httptools"):
    pytest.importorskip(package, reason="needs the extra `serve`")
if sys.platform != "linux":
    pytest.skip("reads the memory of a process from /proc", allow_module_level=True)

MIB = 1 << 20
BROKEN = [
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # the beginning of a TLS connection
    b"GET\r\n\r\n",
    b"POST /v1/completions HTTP/1.1\r\nContent-Length: -5\r\n\r\n",
    b"POST /v1/completions HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\nx",
    b'POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{"n":',
    b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    b"GET / HTTP/1.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nHost: localhost\r\n\r\n",
    b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * (1 << 20),
    b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n" * 2000,
    b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"0\r\n" + b"x: y\r\n" * 200_000,
]


async def _normal(server: Server, chance: random.Random) -> str:
    """Ask for a text as a usual client does.

    If the server is full, try again. Return "served" or "never served"."""
    count = chance.randrange(1, 60)
    body = {"prompt": "KING", "max_tokens": count, "stream": chance.random() < 0.5}
    for _ in range(200):
        try:
            reply = await asyncio.wait_for(exchange(server.port, request(server.port, body)), 60)
        except ConnectionError:
            await asyncio.sleep(0.2)
            continue
        if reply.status == 503:
            assert reply.headers["retry-after"] == "1"
            await asyncio.sleep(0.2)
            continue
        assert reply.status == 200
        text = streamed_text(reply.body) if body["stream"] else reply.json["choices"][0]["text"]
        assert len(text) == count
        return "served"
    return "never served"


@contextlib.asynccontextmanager
async def _connected(
    server: Server,
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def _reads_nothing(server: Server, chance: random.Random) -> str:
    """Ask for a long answer, but do not read it.

    Wait until the server has closed the connection."""
    async with _connected(server) as (_, writer):
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        body = {"prompt": "KING", "max_tokens": 500, "n": 8, "logprobs": 5, "stream": True}
        writer.write(request(server.port, body))
        for _ in range(600):
            await asyncio.sleep(0.1)
            if not server.has_connections():
                return "cut"
        return "held"


async def _is_silent(server: Server, chance: random.Random) -> str:
    """Connect, and send nothing or only the beginning of a request."""
    async with _connected(server) as (reader, writer):
        writer.write(chance.choice([b"", b"POST /v1/comp", b"GET / HTTP/1.1\r\nHost: loc"]))
        return "cut" if await asyncio.wait_for(reader.read(-1), 60) == b"" else "answered"


async def _sends_slowly(server: Server, chance: random.Random) -> str:
    """Send the body of a request slowly, byte by byte."""
    data = request(server.port, {"prompt": "KING" * 1000, "max_tokens": 5})
    async with _connected(server) as (reader, writer):
        writer.write(data[:-4000])
        answer = asyncio.create_task(reader.read(-1))
        for i in range(600):
            writer.write(data[i : i + 1])
            await asyncio.wait([answer], timeout=0.1)
            if answer.done():
                break
        return "cut" if b" 408 " in (await answer)[:20] else "answered"


async def _leaves(server: Server, chance: random.Random) -> str:
    """Ask for a text, and disconnect before the answer is complete."""
    async with _connected(server) as (_, writer):
        body = {"prompt": "KING", "max_tokens": 1000, "n": 4, "stream": chance.random() < 0.5}
        writer.write(request(server.port, body))
        await asyncio.sleep(chance.random())
        return "left"


async def _is_broken(server: Server, chance: random.Random) -> str:
    """Send bytes that are not a valid request."""
    async with _connected(server) as (reader, writer):
        data = chance.choice([*BROKEN, chance.randbytes(1000)])
        with contextlib.suppress(ConnectionError):
            writer.write(data)
            await asyncio.wait_for(writer.drain(), 60)
            await asyncio.wait_for(reader.read(-1), 60)
        return "ended"


async def _attack(server: Server, kinds: list[Any], seed: int) -> Counter[tuple[str, str]]:
    """Start all clients at once.

    Return a Counter: (kind of client, how it ended) -> number of clients."""
    random.Random(seed).shuffle(kinds)

    async def one(kind: Any, seed: int) -> tuple[str, str]:
        try:
            return kind.__name__, await kind(server, random.Random(seed))
        except ConnectionError:
            return kind.__name__, "cut"

    return Counter(await asyncio.gather(*(one(kind, i) for i, kind in enumerate(kinds))))


def _is_as_before(server: Server) -> None:
    """Assert that the server is idle, has no connections, and answers a new request."""
    server.wait_until_idle()
    server.wait_until(lambda: not server.has_connections())
    assert server.complete(prompt="KING", max_tokens=5).status == 200
    assert "Traceback" not in "".join(server.stderr)


ENDS = {
    "_normal": {"served"},
    "_reads_nothing": {"cut"},
    "_is_silent": {"cut"},
    "_sends_slowly": {"cut"},
    "_leaves": {"left", "cut"},
    "_is_broken": {"ended", "cut"},
}


def _check(found: Counter[tuple[str, str]]) -> None:
    assert all(end in ENDS[kind] for kind, end in found), found


def test_others_are_served_meanwhile(trained: Path) -> None:
    """During an attack, normal clients are served.

    This attack has only 40 clients. The tests with more clients are marked slow."""
    kinds = (
        [_normal] * 16
        + [_reads_nothing, _is_silent, _sends_slowly, _leaves] * 3
        + [_is_broken] * 12
    )
    with serving(trained, "--streams", 8, "--max-queue", 4, patience=0.5) as server:
        _check(asyncio.run(_attack(server, kinds, 0)))
        _is_as_before(server)
        assert server.stop() == 0


@pytest.fixture(scope="module")
def impatient(trained: Path) -> Iterator[Server]:
    with serving(trained, patience=2) as server:
        yield server


@pytest.mark.slow
def test_500_clients(impatient: Server) -> None:
    before = impatient.memory()
    found = asyncio.run(_attack(impatient, [_normal] * 500, 1))
    assert found == {("_normal", "served"): 500}
    _is_as_before(impatient)
    assert impatient.memory() - before < 100 * MIB


@pytest.mark.slow
def test_500_clients_of_all_kinds(impatient: Server) -> None:
    before = impatient.memory()
    kinds = [_normal] * 150 + [_reads_nothing] * 100 + [_is_silent] * 100 + [
        _sends_slowly
    ] * 50 + [_leaves] * 50 + [_is_broken] * 50  # fmt: skip
    _check(asyncio.run(_attack(impatient, kinds, 2)))
    _is_as_before(impatient)
    assert impatient.memory() - before < 400 * MIB


@pytest.mark.slow
def test_memory_does_not_grow_from_attack_to_attack(impatient: Server) -> None:
    kinds = [_normal, _reads_nothing, _is_silent, _leaves, _is_broken] * 8
    sizes = []
    for seed in range(5):
        _check(asyncio.run(_attack(impatient, list(kinds), seed)))
        _is_as_before(impatient)
        sizes.append(impatient.memory())
    assert sizes[-1] - sizes[2] < 40 * MIB, sizes


@pytest.mark.slow
def test_a_full_queue_answers_at_once(trained: Path) -> None:
    with serving(
        trained, "--streams", 2, "--max-queue", 8, "--max-wait", 1, "--max-length", 10**5
    ) as server:

        async def ask(count: int) -> int:
            body = {"max_tokens": count}
            return (await exchange(server.port, request(server.port, body))).status

        async def all_of_them() -> list[int]:
            return await asyncio.gather(*(ask(90_000) for _ in range(60)))

        statuses = Counter(asyncio.run(all_of_them()))
        assert set(statuses) == {200, 503}
        assert statuses[503] >= 40
        _is_as_before(server)


@pytest.mark.slow
def test_kill_and_restart_on_the_same_port(trained: Path) -> None:
    port = 0
    for _ in range(3):
        with serving(trained, "--max-length", 10**6, port=port) as server:
            port = server.port

            async def killed() -> None:
                readers = []
                for _ in range(20):
                    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
                    body = {"prompt": "KING", "max_tokens": 100_000, "stream": True}
                    writer.write(request(server.port, body))
                    readers.append((reader, writer))
                for reader, _ in readers[:5]:
                    await reader.readuntil(b"data: ")
                server.process.send_signal(signal.SIGKILL)
                for reader, writer in readers:
                    with contextlib.suppress(ConnectionError):
                        answer = await asyncio.wait_for(reader.read(-1), 300)
                        assert b"[DONE]" not in answer
                    writer.close()

            assert server.complete(prompt="KING", max_tokens=5).status == 200
            asyncio.run(killed())


@pytest.mark.slow
def test_two_signals_end_at_once(trained: Path) -> None:
    with serving(trained, "--max-length", 10**6) as server:

        async def stop() -> bytes:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            body = {"prompt": "KING", "max_tokens": 900_000, "stream": True}
            writer.write(request(server.port, body))
            await reader.readuntil(b"data: ")
            server.process.send_signal(signal.SIGTERM)
            await asyncio.sleep(0.5)
            server.process.send_signal(signal.SIGTERM)
            answer = b""
            with contextlib.suppress(ConnectionError):
                answer = await reader.read(-1)
            writer.close()
            return answer

        assert b"[DONE]" not in asyncio.run(stop())  # the server does not finish the text
        assert server.process.wait(60) == 0
