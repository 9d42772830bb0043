"""The official Python client `openai` works with `gptcli serve`."""

from __future__ import annotations

import asyncio
import functools
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Cli
from tests.serving.serving_process import Server, serving

openai = pytest.importorskip("openai", reason="needs the extra `interop`")
for package in ("starlette", "uvicorn", "httptools"):
    pytest.importorskip(package, reason="needs the extra `serve`")
if sys.platform == "win32":
    pytest.skip("needs signals", allow_module_level=True)
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(trained: Path) -> Iterator[Server]:
    words = ("--api-key", "secret", "--streams", 4, "--max-queue", 4, "--max-wait", 2,
             "--max-length", 10**6)  # fmt: skip
    with serving(trained, *words, "--dtype", "float32") as server:
        yield server


@pytest.fixture
def client(server: Server) -> Iterator[Any]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="secret", max_retries=0) as client:
        yield client


def test_models(client: Any) -> None:
    (model,) = client.models.list().data
    assert model.id == "small"
    assert client.models.retrieve("small") == model
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        client.models.retrieve("large")


def test_completions(client: Any, trained: Path, cli: Cli) -> None:
    words = ("--prompt", "KING", "--max-new-tokens", 60, "--seed", 9, "--num-samples", 3)
    outcome = cli("sample", trained, *words, "--dtype", "float32", "--json")
    wanted = [json.loads(line)["text"] for line in outcome.out.splitlines()]
    more = {"model": "small", "prompt": "KING", "max_tokens": 60, "seed": 9, "n": 3}
    temperature = 0.8  # the default temperature of gptcli sample
    answer = client.completions.create(**more, temperature=temperature)
    assert [choice.text for choice in answer.choices] == wanted
    assert answer.usage.completion_tokens == 180
    texts = ["", "", ""]
    reasons = {}
    last = None
    for event in client.completions.create(
        **more, temperature=temperature, stream=True, stream_options={"include_usage": True}
    ):
        for choice in event.choices:
            texts[choice.index] += choice.text
            reasons[choice.index] = choice.finish_reason
        last = event
    assert texts == wanted
    assert reasons == {0: "length", 1: "length", 2: "length"}
    assert last is not None
    assert last.usage.total_tokens == 184


def test_several_prompts_stop_and_echo(client: Any) -> None:
    answer = client.completions.create(
        model="small", prompt=["KING", "QUEEN"], max_tokens=100, stop=["\n"], seed=1, echo=True
    )
    assert answer.choices[0].text.startswith("KING")
    assert answer.choices[1].text.startswith("QUEEN")
    for choice in answer.choices:
        assert choice.finish_reason == "stop"
        assert "\n" not in choice.text


def test_logprobs(client: Any) -> None:
    for stream in (False, True):
        answer = client.completions.create(
            model="small", prompt="KING", max_tokens=8, logprobs=3, seed=1, stream=stream
        )
        answers = list(answer) if stream else [answer]
        found = [one.choices[0].logprobs for one in answers]
        tokens = [token for one in found for token in one.tokens]
        assert "".join(tokens) == "".join(one.choices[0].text for one in answers)
        best = [top for one in found for top in one.top_logprobs]
        assert [len(top) for top in best] == [3] * 8


def test_llama_cpps_fields(client: Any) -> None:
    greedy = client.completions.create(model="small", prompt="KING", max_tokens=9, temperature=0)
    narrow = client.completions.create(
        model="small", prompt="KING", max_tokens=9, temperature=2, extra_body={"top_k": 1}
    )
    assert narrow.choices[0].text == greedy.choices[0].text


def test_errors(client: Any, server: Server) -> None:
    with pytest.raises(openai.BadRequestError) as bad:
        client.completions.create(model="small", prompt="KING", max_tokens=-1)
    assert bad.value.param == "max_tokens"
    with pytest.raises(openai.BadRequestError) as bad:
        client.completions.create(model="small", prompt="KING", max_tokens=2_000_000)
    assert bad.value.code == "context_length_exceeded"
    with pytest.raises(openai.NotFoundError):
        client.completions.create(model="large", prompt="KING")
    with pytest.raises(openai.NotFoundError, match="/v1/completions"):
        client.chat.completions.create(model="small", messages=[{"role": "user", "content": "?"}])
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="wrong").models.list()


def test_a_full_server_is_tried_again(server: Server) -> None:
    async def together() -> list[Any]:
        refused = asyncio.Event()

        async def look(response: Any) -> None:
            if response.status_code == 503:
                refused.set()

        http = openai.DefaultAsyncHttpxClient(event_hooks={"response": [look]})
        async with openai.AsyncOpenAI(
            base_url=f"{server.url}/v1", api_key="secret", max_retries=50, http_client=http
        ) as client:
            ask = functools.partial(client.completions.create, model="small", prompt="KING")
            # These four texts keep the server busy. The test closes them after the first refusal.
            long = [await ask(max_tokens=900_000, stream=True) for _ in range(4)]
            short = [asyncio.create_task(ask(max_tokens=200, seed=i)) for i in range(40)]
            await asyncio.wait_for(refused.wait(), 300)
            for stream in long:
                await stream.close()
            return await asyncio.gather(*short)

    answers = asyncio.run(together())
    assert [answer.usage.completion_tokens for answer in answers] == [200] * 40


def test_a_stream_that_is_closed_frees_its_place(client: Any, server: Server) -> None:
    with client.completions.create(
        model="small", prompt="KING", max_tokens=900_000, stream=True
    ) as stream:
        next(iter(stream))
        assert server.health()["running"] == 1
    server.wait_until_idle()


def test_prometheus_reads_the_metrics(client: Any, server: Server) -> None:
    parser = pytest.importorskip("prometheus_client.parser", reason="needs the extra `interop`")
    client.completions.create(model="small", prompt="KING", max_tokens=3)
    text = server.ask("GET", "/metrics", None, {"Authorization": "Bearer secret"}).body.decode()
    families = {family.name: family for family in parser.text_string_to_metric_families(text)}
    assert families["gptcli_first_token_seconds"].type == "histogram"
    assert families["gptcli_http_responses"].type == "counter"
    (tokens,) = families["gptcli_generated_tokens"].samples
    assert tokens.labels == {"model": "small"}
    assert tokens.value >= 3
