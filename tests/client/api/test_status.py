"""Models, health, readiness, metrics: from memory, also while the swarm is away.

Run: pytest tests/client/api/test_status.py
"""

import asyncio
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from shoal.client.api.model import Coverage
from shoal.protocol.events import FailedOver, PassTaken, ReplyReceived
from shoal.protocol.ids import ExpertId, LayerId, PeerId
from tests.client.api.fake_model import FakeModel, gateway

GAPS = Coverage(14_848, 3, (17, 203), 0)


def get(path: str, model: FakeModel | None = None) -> Any:
    async def send() -> Any:
        return await gateway(model).get(path)

    return asyncio.run(send())


def test_models_are_listed_and_found_even_without_a_swarm() -> None:
    listed = get("/v1/models", FakeModel(held=GAPS)).json()
    assert [card["id"] for card in listed["data"]] == ["fake"]
    assert get("/v1/models/fake").json() == listed["data"][0]
    assert listed["data"][0]["max_model_len"] == 2048
    assert get("/v1/models/other").json()["error"]["code"] == "model_not_found"


def test_ready_says_why_not() -> None:
    assert get("/ready").status_code == 200
    response = get("/ready", FakeModel(held=GAPS))
    assert response.status_code == 503
    assert response.json()["reason"] == "coverage 99.9%: nobody holds expert 203 of layer 17 and 2 more"
    assert get("/health", FakeModel(held=GAPS)).status_code == 200


def test_version_names_the_weights() -> None:
    assert get("/version").json()["model_root"] == "ab" * 32


def test_metrics_follow_vllms_names_and_count() -> None:
    async def use() -> str:
        door = gateway()
        await door.chat()
        await door.chat(max_tokens=1, stream=True)
        await door.chat(temperature=9)
        peer = PeerId("12D3")
        door.services.metrics.observe(ReplyReceived(peer, LayerId(1), 0.002, 0.0, 0.001))
        door.services.metrics.observe(FailedOver(peer, LayerId(1), (ExpertId(3),), "ChannelClosed", 0.1))
        for num_drafted, num_accepted, num_void in ((3, 2, 0), (0, 0, 0), (4, 0, 3)):
            pass_taken = PassTaken(1, 1, 0, 1, 0, 0.0, 0.0, 0.1, num_drafted, num_accepted, num_void=num_void)
            door.services.metrics.observe(pass_taken)
        return (await door.get("/metrics")).text

    families = {family.name: family for family in text_string_to_metric_families(asyncio.run(use()))}
    samples = {(s.name, *s.labels.values()): s.value for family in families.values() for s in family.samples}
    for name in (
        "time_to_first_token",
        "inter_token_latency",
        "e2e_request_latency",
        "request_queue_time",
        "expert_rpc",
    ):
        assert families[f"shoal:{name}_seconds"].type == "histogram"
    assert samples["shoal:request_success_total", "stop"] == 1
    assert samples["shoal:request_success_total", "length"] == 1
    assert samples["shoal:request_errors_total", "invalid_type"] == 1
    assert samples["shoal:failovers_total",] == 1
    assert samples["shoal:spec_decode_num_drafts_total",] == 2
    assert samples["shoal:spec_decode_num_draft_tokens_total",] == 7
    assert samples["shoal:spec_decode_num_accepted_tokens_total",] == 2
    assert samples["shoal:spec_decode_num_void_tokens_total",] == 3
    assert samples["shoal:coverage_ratio",] == 1
    assert samples["shoal:num_requests_running",] == 0
    assert len(samples) < 300
    assert all(family.documentation for family in families.values())


@pytest.mark.parametrize("path", ["/v1/models", "/health", "/ready", "/version", "/metrics", "/tokenizer_info"])
def test_reading_endpoints_answer_to_head_as_to_get(path: str) -> None:
    async def send() -> int:
        async with gateway().client() as client:
            return (await client.head(path)).status_code

    assert asyncio.run(send()) == 200
