"""When a client goes away its work ends, streaming or not; when the gateway goes, everyone is told.

Run: pytest tests/client/api/test_disconnect.py
"""

import asyncio
import json

import pytest

from shoal.client.api.settings import ApiSettings
from tests.client.api.fake_model import ASK, Caller, FakeModel, Gateway, gateway, until


def caller(door: Gateway, **fields: object) -> Caller:
    return Caller(door.app, json.dumps(ASK | fields).encode())


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("n", [1, 3])
def test_no_token_is_made_for_a_client_that_has_left(stream: bool, n: int) -> None:
    async def leave() -> None:
        model = FakeModel("word " * 100, gate=asyncio.Semaphore(5))
        door = gateway(model)
        client = caller(door, stream=stream, n=n)
        request = asyncio.create_task(client.run())
        await until(lambda: model.num_tokens == 5)
        client.has_left.set()
        await request
        assert model.gate is not None
        for _ in range(100):
            model.gate.release()
        assert (model.num_tokens, model.num_streams) == (5, 0)
        assert (door.services.line.num_running, door.services.line.num_waiting) == (0, 0)
        assert b"shoal:request_aborts_total 1.0" in door.services.metrics.text()

    asyncio.run(leave())


def test_a_client_that_leaves_the_line_is_forgotten() -> None:
    async def leave() -> None:
        model = FakeModel(gate=asyncio.Semaphore(0))
        door = gateway(model, ApiSettings(max_running=1))
        first, second = caller(door), caller(door)
        runs = [asyncio.create_task(each.run()) for each in (first, second)]
        await until(lambda: door.services.line.num_waiting == 1)
        second.has_left.set()
        await runs[1]
        assert (door.services.line.num_running, door.services.line.num_waiting) == (1, 0)
        assert len(model.asked) == 1
        first.has_left.set()
        await runs[0]

    asyncio.run(leave())


def test_a_reader_that_waits_makes_the_model_wait() -> None:
    async def read_slowly() -> None:
        model = FakeModel("word " * 100)
        client = caller(gateway(model), stream=True)
        client.may_send = asyncio.Semaphore(4)
        request = asyncio.create_task(client.run())
        for _ in range(200):
            await asyncio.sleep(0)
        assert len(client.sent) == 4
        assert model.num_tokens <= 4
        client.has_left.set()
        await request
        assert model.num_streams == 0

    asyncio.run(read_slowly())


@pytest.mark.parametrize("stream", [True, False])
def test_a_gateway_that_ends_tells_who_is_still_waiting(stream: bool) -> None:
    async def end() -> tuple[Caller, Caller]:
        model = FakeModel("word " * 100, gate=asyncio.Semaphore(3))
        door = gateway(model)
        old, new = caller(door, stream=stream), caller(door, stream=stream)
        request = asyncio.create_task(old.run())
        await until(lambda: model.num_tokens == 3)
        door.services.shutdown.begin()
        await new.run()
        door.services.shutdown.finish()
        await request
        assert model.num_streams == 0
        assert (await door.get("/ready")).status_code == 503
        return old, new

    old, new = asyncio.run(end())
    assert (new.sent[0]["status"], "shutting_down" in new.text) == (503, True)
    assert old.sent[0]["status"] == (200 if stream else 503)
    last = old.text.rstrip().removeprefix("data: ").split("data: ")[-1]
    assert json.loads(last)["error"]["code"] == "shutting_down"
