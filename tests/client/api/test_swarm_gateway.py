"""The gateway over a real swarm in memory: the tokens are the swarm's own, grammars hold, failures are typed.

Run: pytest tests/client/api/test_swarm_gateway.py
"""

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from shoal.client import Sampling
from shoal.client.api.app import create_app
from shoal.client.api.assemble import make_services
from shoal.client.api.metrics import Metrics
from shoal.client.api.model import SwarmModel
from shoal.client.api.sampling_defaults import load_sampling_defaults
from shoal.client.api.services import Clocks
from shoal.client.api.settings import ApiSettings
from shoal.protocol.net.channel import Reply, Request
from shoal.simulations.demo_model import MODEL_DIRECTORY
from tests.client.api.fake_model import events
from tests.swarm.world import World, memory_swarm

STORY = [{"role": "user", "content": "Tell a story about a frog."}]
SCHEMA = {
    "type": "object",
    "properties": {"color": {"enum": ["red", "green"]}, "size": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["color", "size"],
    "additionalProperties": False,
}


@asynccontextmanager
async def served(tmp: Path, holdings: Sequence[str] = ("all",)) -> AsyncIterator[tuple[World, httpx2.AsyncClient]]:
    async with memory_swarm(MODEL_DIRECTORY, holdings, tmp) as world:
        settings, clocks = ApiSettings(), Clocks(time.time, time.perf_counter, os.urandom)
        defaults = load_sampling_defaults(MODEL_DIRECTORY)
        services = make_services(SwarmModel(world.swarm), "shoal-demo", defaults, settings, clocks, Metrics())
        transport = httpx2.ASGITransport(app=create_app(services, settings))  # type: ignore[arg-type]
        async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as client:
            yield world, client


async def chat(client: httpx2.AsyncClient, **fields: object) -> Any:
    body = {"messages": STORY, "max_tokens": 24, "temperature": 0} | fields
    return await client.post("/v1/chat/completions", json=body)


def test_tokens_are_those_of_the_swarm_alone_and_in_a_crowd(tmp_path: Path) -> None:
    async def compare() -> None:
        async with served(tmp_path) as (world, client):
            alone = await world.swarm.generate(STORY, Sampling(max_tokens=24))
            told = (await chat(client)).json()
            assert told["choices"][0]["message"]["content"] == alone.text
            assert told["usage"]["completion_tokens"] == len(alone.token_ids)
            crowd = await asyncio.gather(*(chat(client, stream=index % 2 == 0) for index in range(6)))
            for response in crowd[1::2]:
                assert response.json()["choices"][0]["message"]["content"] == alone.text
            for response in crowd[::2]:
                pieces = [chunk["choices"][0]["delta"].get("content", "") for chunk in events(response)]  # type: ignore[index]
                assert "".join(pieces) == alone.text

    asyncio.run(compare())


def test_a_seed_gives_the_same_answers_again(tmp_path: Path) -> None:
    async def twice() -> None:
        async with served(tmp_path) as (_, client):
            answers = [(await chat(client, n=3, seed=5, temperature=1)).json()["choices"] for _ in range(2)]
            assert answers[0] == answers[1]
            assert len({choice["message"]["content"] for choice in answers[0]}) == 3

    asyncio.run(twice())


def test_scores_of_a_prompt_are_the_models_own(tmp_path: Path) -> None:
    async def compare() -> None:
        async with served(tmp_path) as (world, client):
            ids = world.swarm.prompt_ids("Once upon a time there was a frog")
            body = {"prompt": [ids], "echo": True, "logprobs": 1, "max_tokens": 1, "temperature": 0}
            logprobs = (await client.post("/v1/completions", json=body)).json()["choices"][0]["logprobs"]
            assert logprobs["token_logprobs"][:-1] == [score.logprob for score in await world.swarm.score(ids, 1)]
            for own, likeliest in zip(logprobs["token_logprobs"][1:], logprobs["top_logprobs"][1:], strict=True):
                assert own <= max(likeliest.values())
            assert logprobs["token_logprobs"][-1] == max(logprobs["top_logprobs"][-1].values())  # greedy

    asyncio.run(compare())


def test_an_answer_keeps_to_its_schema(tmp_path: Path) -> None:
    async def keep() -> Any:
        async with served(tmp_path) as (_, client):
            asked = {"type": "json_schema", "json_schema": {"name": "frog", "schema": SCHEMA, "strict": True}}
            return (await chat(client, response_format=asked, max_tokens=200)).json()["choices"][0]

    choice = asyncio.run(keep())
    answer = json.loads(choice["message"]["content"])
    assert choice["finish_reason"] == "stop"
    assert answer["color"] in ("red", "green")
    assert 0 <= answer["size"] <= 9


def test_json_object_is_an_object(tmp_path: Path) -> None:
    async def keep() -> str:
        async with served(tmp_path) as (_, client):
            response = await chat(client, response_format={"type": "json_object"}, max_tokens=40)
            return str(response.json()["choices"][0]["message"]["content"])

    assert asyncio.run(keep()).lstrip().startswith("{")


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "paint"}}])
@pytest.mark.parametrize("stream", [False, True])
def test_a_forced_call_is_one_with_arguments_of_its_schema(tmp_path: Path, choice: object, stream: bool) -> None:
    tools = [
        {"type": "function", "function": {"name": "paint", "description": "Paint it.", "parameters": SCHEMA}},
        {"type": "function", "function": {"name": "look", "parameters": SCHEMA}},
    ]

    async def call() -> list[dict[str, Any]]:
        async with served(tmp_path) as (_, client):
            response = await chat(
                client, tools=tools, tool_choice=choice, parallel_tool_calls=False, stream=stream, max_tokens=250
            )
            assert response.status_code == 200, response.text
            if not stream:
                assert response.json()["choices"][0]["finish_reason"] == "tool_calls"
                return [each["function"] for each in response.json()["choices"][0]["message"]["tool_calls"]]
            chunks: list[Any] = events(response)
            parts = [part for chunk in chunks for part in chunk["choices"][0]["delta"].get("tool_calls", [])]
            arguments = "".join(part["function"].get("arguments", "") for part in parts)
            return [{"name": parts[0]["function"]["name"], "arguments": arguments}]

    (function,) = asyncio.run(call())
    assert function["name"] in ("paint", "look") if choice == "required" else function["name"] == "paint"
    assert set(json.loads(function["arguments"])) == {"color", "size"}


def test_a_swarm_that_loses_its_last_holder_in_mid_answer_is_a_typed_error_event(tmp_path: Path) -> None:
    async def lose() -> Any:
        async with served(tmp_path) as (world, client):
            assert (await client.get("/ready")).status_code == 200
            (peer,) = world.peers
            num_calls = 0

            async def die(request: Request) -> Reply:
                nonlocal num_calls
                num_calls += 1
                if num_calls > 20:
                    world.network.kill(peer)
                return await world.servers[peer].handle(request)

            world.handlers[peer] = die
            told: list[Any] = events(await chat(client, stream=True))
            refused = await chat(client)
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "coverage_gap")
            assert int(refused.headers["retry-after"]) >= 1
            assert (await client.get("/ready")).status_code == 503
            assert (await client.get("/v1/models")).status_code == 200
            return told

    told = asyncio.run(lose())
    assert told[0]["choices"]
    assert told[-1]["error"]["code"] == "coverage_gap"
