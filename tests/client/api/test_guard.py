"""Strangers are refused, on every path and with every method, before anything else is looked at.

Run: pytest tests/client/api/test_guard.py
"""

import asyncio
from typing import Any

import pytest

from shoal.client.api.settings import ApiSettings
from shoal.protocol.errors import InvalidRequest
from tests.client.api.fake_model import ASK, gateway

KEY = "sk-shoal-of-fish"
METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "TRACE", "CONNECT", "FROG"]
PATHS = ["/", "/v1/models", "/v1/chat/completions", "/health", "/metrics", "/nowhere"]
LOOPBACK = ApiSettings()
OPEN = ApiSettings(host="0.0.0.0", api_key=KEY, allowed_hosts=("box.lan",))


def status(settings: ApiSettings, method: str = "GET", path: str = "/v1/models", **headers: str) -> int:
    return int(answer(settings, method, path, **headers).status_code)


def answer(settings: ApiSettings, method: str = "GET", path: str = "/v1/models", **headers: str) -> Any:
    async def send() -> Any:
        async with gateway(settings=settings).client() as client:
            return await client.request(method, path, headers={key.replace("_", "-"): headers[key] for key in headers})

    return asyncio.run(send())


def statuses(settings: ApiSettings, paths: list[str], **headers: str) -> set[int]:
    """What every method gets on every path."""

    async def send() -> set[int]:
        async with gateway(settings=settings).client(**headers) as client:
            return {(await client.request(method, path)).status_code for method in METHODS for path in paths}

    return asyncio.run(send())


def test_a_foreign_host_is_refused_with_every_method() -> None:
    assert statuses(LOOPBACK, PATHS, host="evil.example") == {421}


def test_a_foreign_origin_is_refused_with_every_method() -> None:
    assert statuses(LOOPBACK, PATHS, origin="https://evil.example") == {403}


@pytest.mark.parametrize("token", [{}, *({"authorization": words} for words in ("Bearer no", f"Basic {KEY}", KEY, ""))])
def test_without_the_key_nothing_but_health_is_answered(token: dict[str, str]) -> None:
    assert statuses(OPEN, [path for path in PATHS if path != "/health"], host="box.lan", **token) == {401}


def test_with_the_key_the_api_answers_and_health_needs_none() -> None:
    assert status(OPEN, host="box.lan", authorization=f"Bearer {KEY}") == 200
    assert status(OPEN, host="box.lan", authorization=f"bearer {KEY}") == 200
    assert status(OPEN, path="/health", host="box.lan") == 200


@pytest.mark.parametrize("host", ["localhost", "localhost:8000", "127.0.0.1", "127.0.0.1:1", "[::1]:8000", "LOCALHOST"])
def test_this_machine_is_known_by_its_names(host: str) -> None:
    assert status(LOOPBACK, host=host) == 200


@pytest.mark.parametrize(
    "host",
    ["", "evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "192.168.1.9", "[", "a@localhost.x"],
)
def test_other_names_are_not_ours(host: str) -> None:
    assert status(LOOPBACK, host=host) == 421


def test_behind_an_open_address_numbers_will_do_and_names_must_be_listed() -> None:
    key = {"authorization": f"Bearer {KEY}"}
    assert status(OPEN, host="192.168.1.9:8000", **key) == 200
    assert status(OPEN, host="BOX.lan:8000", **key) == 200
    assert status(OPEN, host="other.lan", **key) == 421


def test_a_page_of_our_own_or_of_a_named_origin_may_call() -> None:
    named = ApiSettings(cors_origins=("https://chat.example",))
    assert status(LOOPBACK, origin="http://localhost", host="localhost") == 200
    told = answer(named, origin="https://chat.example")
    assert (told.status_code, told.headers["access-control-allow-origin"]) == (200, "https://chat.example")
    assert status(named, origin="https://chat.example.evil") == 403
    assert status(named, origin="null") == 403


def test_no_cors_unless_named() -> None:
    told = answer(LOOPBACK, origin="http://localhost", host="localhost")
    assert not [name for name in told.headers if name.startswith("access-control")]


def test_a_named_origins_browser_may_ask_before_it_sends_the_key() -> None:
    settings = ApiSettings(api_key=KEY, cors_origins=("https://chat.example",))
    asking = {"origin": "https://chat.example", "access_control_request_method": "POST",
              "access_control_request_headers": "authorization,content-type"}  # fmt: skip
    assert status(settings, "OPTIONS", "/v1/chat/completions", **asking) == 200
    assert status(settings, "POST", "/v1/chat/completions", origin="https://chat.example") == 401


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.9", "box.lan"])
def test_an_address_that_others_reach_needs_a_key(host: str) -> None:
    with pytest.raises(InvalidRequest, match="--api-key-file"):
        ApiSettings(host=host)
    assert ApiSettings(host=host, api_key=KEY).host == host


@pytest.mark.parametrize("key", ["", "two\nlines", "grüße"])
def test_a_key_that_can_not_be_sent_is_refused(key: str) -> None:
    with pytest.raises(InvalidRequest, match="API key"):
        ApiSettings(api_key=key)


def test_every_answer_has_a_name_and_refusals_the_envelope() -> None:
    for told in (answer(LOOPBACK), answer(LOOPBACK, host="evil.example"), answer(LOOPBACK, path="/nowhere")):
        assert told.headers["x-request-id"].startswith("req-")
        assert told.status_code == 200 or set(told.json()["error"]) >= {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [("DELETE", "/v1/models", 405), ("GET", "/v1/chat/completions", 405), ("POST", "/v1/embeddings", 404)],
)
def test_paths_and_methods_that_are_not_there_are_told_in_the_envelope(method: str, path: str, expected: int) -> None:
    told = answer(LOOPBACK, method, path)
    assert told.status_code == expected
    assert told.json()["error"]["code"] in ("not_found", "method_not_allowed")


@pytest.mark.parametrize("path", ["/v1/responses", "/v1/responses/", "/v1/messages", "/api/chat"])
def test_what_other_servers_have_is_told_what_to_use_instead(path: str) -> None:
    told = answer(LOOPBACK, "POST", path)
    error = told.json()["error"]
    assert (told.status_code, error["code"], error["type"]) == (404, "not_offered", "invalid_request_error")
    assert "/v1/chat/completions" in error["message"]


def test_nothing_of_a_prompt_is_logged_whatever_happens(caplog: pytest.LogCaptureFixture) -> None:
    canary = "canary-7c1f"
    bodies: list[object] = [
        ASK | {"messages": [{"role": "user", "content": canary}]},
        ASK | {"messages": [{"role": canary, "content": canary}]},
        ASK | {"messages": [{"role": "user", "content": canary * 9000}]},
        ASK | {"model": canary, "stream": True},
        f'{{"messages": [{{"role": "user", "content": "{canary}'.encode(),
    ]

    async def send() -> None:
        door = gateway()
        for body in bodies:
            for path in ("/v1/chat/completions", "/v1/completions", "/tokenize", f"/{canary}"):
                await door.post(path, body)
        assert canary not in (await door.get("/metrics")).text

    with caplog.at_level("DEBUG"):
        asyncio.run(send())
    assert canary not in "".join(record.getMessage() for record in caplog.records if record.name != "httpx2")
