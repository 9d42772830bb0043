"""`gptcli serve` over HTTP: OpenAI's interface, errors, API keys, web pages, limits and signals."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Cli
from tests.serving.serving_process import (
    Server,
    events,
    exchange,
    request,
    serving,
    streamed_text,
)

for package in ("starlette", "uvicorn", "httptools"):
    pytest.importorskip(package, reason="needs the extra `serve`")
if sys.platform == "win32":
    pytest.skip("needs signals", allow_module_level=True)


@pytest.fixture(scope="module")
def server(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server for two runs, with low limits on texts and requests."""
    other = tmp_path_factory.mktemp("serve") / "other"
    shutil.copytree(trained, other)
    limits = ("--max-length", 300, "--max-body", 20_000, "--streams", 8)
    with serving(trained, other, "--dtype", "float32", *limits) as server:
        yield server


def test_the_models_are_listed(server: Server) -> None:
    listed = server.ask("GET", "/v1/models").json
    assert listed["object"] == "list"
    assert [model["id"] for model in listed["data"]] == ["small", "other"]
    for model in listed["data"]:
        assert (model["object"], model["owned_by"]) == ("model", "gptcli")
        assert model["meta"]["n_ctx_train"] == 32
        assert server.ask("GET", f"/v1/models/{model['id']}").json == model


@pytest.mark.parametrize("stream", [False, True])
def test_a_text_is_what_gptcli_sample_writes(
    server: Server, trained: Path, cli: Cli, stream: bool
) -> None:
    outcome = cli("sample", trained, "--prompt", "KING", "--max-new-tokens", 80, "--seed", 5,
                  "--temperature", 0.9, "--top-p", 0.95, "--num-samples", 2, "--dtype", "float32",
                  "--json")  # fmt: skip
    wanted = [json.loads(line)["text"] for line in outcome.out.splitlines()]
    reply = server.complete(
        prompt="KING", max_tokens=80, seed=5, temperature=0.9, top_p=0.95, n=2, stream=stream
    )
    assert reply.status == 200
    if stream:
        assert reply.headers["content-type"] == "text/event-stream; charset=utf-8"
        found = ["", ""]
        for event in events(reply.body):
            for choice in event["choices"]:
                found[choice["index"]] += choice["text"]
    else:
        found = [choice["text"] for choice in reply.json["choices"]]
    assert found == wanted
    assert found[0] != found[1]


def test_the_answer_has_the_fields_of_openai(server: Server) -> None:
    answer = server.complete(model="other", prompt="KING", max_tokens=7).json
    assert re.fullmatch("cmpl-[0-9a-f]{24}", answer["id"])
    assert (answer["object"], answer["model"]) == ("text_completion", "other")
    assert answer["usage"] == {"prompt_tokens": 4, "completion_tokens": 7, "total_tokens": 11}
    (choice,) = answer["choices"]
    assert choice.keys() == {"text", "index", "logprobs", "finish_reason"}
    assert choice["finish_reason"] == "length"
    streamed = events(server.complete(max_tokens=3, stream=True,
                                      stream_options={"include_usage": True}).body)  # fmt: skip
    assert streamed[-1]["choices"] == []
    assert streamed[-1]["usage"]["completion_tokens"] == 3
    assert all(event["usage"] is None for event in streamed[:-1])
    assert streamed[-2]["choices"][0]["finish_reason"] == "length"


def test_a_stop_string_ends_a_text_and_is_not_in_it(server: Server) -> None:
    body = {"prompt": "KING", "max_tokens": 200, "seed": 1, "temperature": 0}
    whole = server.complete(**body).json["choices"][0]["text"]
    stop = whole[10:13]
    for more in ({}, {"stream": True}):
        reply = server.complete(**body, **more, stop=[stop, "\0"])
        text = streamed_text(reply.body) if more else reply.json["choices"][0]["text"]
        assert text == whole[: whole.index(stop)]
    assert reply.status == 200
    assert events(reply.body)[-1]["choices"][0]["finish_reason"] == "stop"


def test_logprobs_echo_and_token_ids(server: Server) -> None:
    reply = server.complete(prompt="KING", max_tokens=6, logprobs=2, echo=True, seed=3).json
    (choice,) = reply["choices"]
    found = choice["logprobs"]
    assert choice["text"].startswith("KING")
    assert "".join(found["tokens"]) == choice["text"]
    assert found["token_logprobs"][0] is None
    assert all(value <= 0 for value in found["token_logprobs"][1:])
    assert all(len(best) == 2 for best in found["top_logprobs"][1:])
    assert found["text_offset"] == list(range(10))
    streamed = server.complete(prompt="KING", max_tokens=6, logprobs=2, echo=True, seed=3,
                               stream=True)  # fmt: skip
    parts = [event["choices"][0]["logprobs"] for event in events(streamed.body)]
    assert [token for part in parts for token in part["tokens"]] == found["tokens"]
    values = [value for part in parts for value in part["token_logprobs"]]
    assert values == pytest.approx(found["token_logprobs"], abs=1e-5)
    same = server.complete(prompt=[[7, 1], [7, 1]], max_tokens=5, seed=3).json["choices"]
    assert same[0]["text"] == same[1]["text"]


def test_best_of_gives_the_likeliest(server: Server) -> None:
    body = {"prompt": "KING", "max_tokens": 10, "seed": 2, "logprobs": 0}
    every = server.complete(**body, n=5).json["choices"]
    sums = {choice["text"]: sum(choice["logprobs"]["token_logprobs"]) for choice in every}
    (best,) = server.complete(**body, n=1, best_of=5).json["choices"]
    assert best["text"] == max(sums, key=lambda text: sums[text])


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        ({"max_tokens": "7"}, "max_tokens", "Invalid value for `max_tokens`"),
        ({"max_token": 7}, "max_token", "Did you mean `max_tokens`?"),
        ({"temperature": 3}, "temperature", "less than or equal to 2"),
        ({"n": 0}, "n", "greater than or equal to 1"),
        ({"n": 3, "best_of": 2}, "best_of", "at least `n`"),
        ({"prompt": ["K"] * 257}, "n", "257 prompts with 1 text each are more than"),
        ({"prompt": []}, "prompt", "the list is empty"),
        ({"prompt": [10**6]}, "prompt", "outside the vocabulary"),
        ({"prompt": "\u20ac"}, "prompt", "\u20ac"),
        ({"stop": [""]}, "stop", "must not be empty"),
        ({"logprobs": 6}, "logprobs", "less than or equal to 5"),
        ({"logit_bias": {"5": 1}}, "logit_bias", "not supported"),
        ({"presence_penalty": 1.0}, "presence_penalty", "repeat_penalty"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "needs `stream`"),
        ({"max_tokens": 301}, "max_tokens", "maximum length is 300"),
        ({"prompt": "e" * 400}, "prompt", "maximum length is 300"),
    ],
)
def test_a_wrong_field_is_named(
    server: Server, body: dict[str, Any], param: str, message: str
) -> None:
    reply = server.complete(**{"prompt": "KING", **body})
    error = reply.json["error"]
    assert (reply.status, error["type"]) == (400, "invalid_request_error")
    assert error["param"] == param
    assert message in error["message"]


@pytest.mark.parametrize("body", [b"", b"{", b"[1]", b"\xff\xfe", b"[" * 15_000, b'{"n": 1e999}'])
def test_a_broken_body_is_refused(server: Server, body: bytes) -> None:
    reply = server.ask("POST", "/v1/completions", body)
    assert reply.status == 400
    assert reply.json["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code"),
    [
        ("GET", "/v1/nothing", None, 404, "unknown_url"),
        ("GET", "/v1/models/smal", None, 404, "model_not_found"),
        ("GET", "/v1/completions", None, 405, None),
        ("POST", "/v1/completions", {"model": "smal"}, 404, "model_not_found"),
        ("POST", "/v1/chat/completions", {"messages": []}, 404, "unsupported_endpoint"),
        ("POST", "/v1/completions", {"prompt": "e" * 20_000}, 413, "request_too_large"),
    ],
)
def test_errors_have_the_form_of_openai(
    server: Server, method: str, path: str, body: Any, status: int, code: str | None
) -> None:
    reply = server.ask(method, path, body)
    assert (reply.status, reply.json["error"]["code"]) == (status, code)
    assert reply.json["error"].keys() == {"message", "type", "param", "code"}
    if code == "model_not_found":
        assert "did you mean `small`?" in reply.json["error"]["message"]


def test_a_body_without_a_length_is_limited(server: Server) -> None:
    head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost:{server.port}\r\n"
    chunk = b"4000\r\n" + b" " * 0x4000 + b"\r\n"
    data = head.encode() + b"Transfer-Encoding: chunked\r\n\r\n" + chunk * 2 + b"0\r\n\r\n"
    assert asyncio.run(exchange(server.port, data)).status == 413


def test_web_pages_of_others_are_refused(server: Server) -> None:
    body = {"max_tokens": 1}
    own = server.ask("POST", "/v1/completions", body, {"Origin": server.url})
    other = server.ask("POST", "/v1/completions", body, {"Origin": "https://example.org"})
    rebound = server.ask("POST", "/v1/completions", body, {"Host": "example.org"})
    assert [own.status, other.status, rebound.status] == [200, 403, 403]
    assert other.json["error"]["code"] == "origin_not_allowed"
    assert rebound.json["error"]["code"] == "wrong_host"
    for reply in (own, other):
        assert not [name for name in reply.headers if name.startswith("access-control")]


def test_the_page_asks_for_nothing_else(server: Server) -> None:
    reply = server.ask("GET", "/")
    assert reply.headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in reply.headers["content-security-policy"]
    assert b"http://" not in reply.body
    assert b"https://" not in reply.body


def test_health_and_metrics(server: Server) -> None:
    assert server.ask("GET", "/health").json["status"] == "ok"
    before = server.ask("GET", "/metrics").body.decode()
    server.complete(prompt="KING", max_tokens=9)
    text = server.ask("GET", "/metrics").body.decode()
    name = 'gptcli_generated_tokens_total{model="small"}'
    numbers = [int((re.search(rf"^{re.escape(name)} (\d+)$", one, re.MULTILINE) or [0, 0])[1])
               for one in (before, text)]  # fmt: skip
    assert numbers[1] - numbers[0] == 9


def test_a_client_that_leaves_frees_its_place(trained: Path) -> None:
    async def leave(server: Server) -> None:
        for stream in (False, True):
            body = {"prompt": "KING", "max_tokens": 900_000, "stream": stream, "n": 2}
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(request(server.port, body))
            if stream:
                await reader.readuntil(b"data: ")
            else:
                await asyncio.to_thread(server.wait_until, lambda: server.health()["running"] > 0)
            writer.transport.abort()

    with serving(trained, "--max-length", 10**6) as server:
        asyncio.run(leave(server))
        server.wait_until_idle()
        server.wait_until(lambda: server.metric("gptcli_disconnected_total") == 2)


def test_64_clients_get_what_each_would_get_alone(server: Server, trained: Path) -> None:
    """The prompts and the texts have many lengths.

    Half of the clients receive their text as a stream."""
    bodies = [
        {
            "model": ("small", "other")[i % 2],
            "prompt": "QUEEN:\nWhat light is this, that walks by night?"[: 1 + i * 7 % 45],
            "max_tokens": 1 + i * 37 % 200,
            "seed": i // 3,
            "temperature": (0.8, 1.0, 0)[i % 3],
            "stream": i % 4 < 2,
        }
        for i in range(64)
    ]

    async def together() -> list[str]:
        replies = await asyncio.gather(
            *(exchange(server.port, request(server.port, body)) for body in bodies)
        )
        return [text_of(reply) for reply in replies]

    def text_of(reply: Any) -> str:
        if reply.headers["content-type"] == "application/json":
            return str(reply.json["choices"][0]["text"])
        return streamed_text(reply.body)

    found = asyncio.run(together())
    alone = [text_of(server.complete(**body)) for body in bodies]
    assert found == alone
    assert [len(text) for text in found] == [body["max_tokens"] for body in bodies]


def test_keys_origins_and_the_end(trained: Path) -> None:
    words = ("--api-key", "secret", "--api-key", "other", "--allow-origin", "https://example.org")
    with serving(trained, *words, "--host", "0.0.0.0", "--max-length", 10**6) as server:
        ask = {"max_tokens": 1}
        for key, status in (("secret", 200), ("other", 200), ("secre", 401), ("", 401)):
            headers = {"Authorization": f"Bearer {key}"} if key else {}
            assert server.ask("POST", "/v1/completions", ask, headers).status == status
            assert server.ask("GET", "/v1/models", None, headers).status == status
            assert server.ask("GET", "/metrics", None, headers).status == status
        assert server.ask("GET", "/health").status == 200
        page = server.ask("OPTIONS", "/v1/completions", None,
                          {"Origin": "https://example.org",
                           "Access-Control-Request-Method": "POST"})  # fmt: skip
        assert page.headers["access-control-allow-origin"] == "https://example.org"
        headers = {"Authorization": "Bearer secret", "Origin": "https://example.com"}
        assert server.ask("GET", "/v1/models", None, headers).status == 403
        answer = asyncio.run(_end_meanwhile(server))
        assert answer.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
        assert answer.count(b'"finish_reason":"length"') == 1
        assert server.stop() == 0
        assert "Traceback" not in "".join(server.stderr)


async def _end_meanwhile(server: Server) -> bytes:
    """Ask for a text, and return the complete answer.

    Sends SIGTERM to the server while it writes the text."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    body = {"prompt": "KING", "max_tokens": 5000, "stream": True}
    writer.write(request(server.port, body, key="secret"))
    start = await reader.readuntil(b"data: ")
    server.process.send_signal(signal.SIGTERM)
    rest = await reader.read(-1)
    writer.close()
    return start + rest


def test_a_port_in_use_is_an_error(server: Server, trained: Path, cli: Cli) -> None:
    outcome = cli("serve", trained, "--port", server.port)
    assert outcome.code == 1
    assert f"cannot listen on 127.0.0.1 port {server.port}" in outcome.err
    assert "name another --port" in outcome.err
