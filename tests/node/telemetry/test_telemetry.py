"""Telemetry: off by default, TLS or loopback, a closed list of figures, and a node that does not feel its broker."""

import asyncio
import json
import shutil
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from shoal.node.log_events import TelemetryLost
from shoal.node.settings import NodeSettings
from shoal.node.telemetry.mqtt_settings import MqttSettings, check_mqtt
from shoal.node.telemetry.telemetry import send_telemetry
from shoal.node.telemetry.telemetry_messages import FIGURES, discovery_messages, state_message
from shoal.protocol.control import NodeLimits, NodeState, NodeStatus
from shoal.protocol.errors import InsecureTelemetry, InvalidRequest

CANARY = "canary"
STATUS = NodeStatus(
    name="node", version="1", pid=1, peer=CANARY, state=NodeState.SERVING, pause_reason=None, paused_until_s=None,
    started_at_s=0.0, model=CANARY, model_root=CANARY, weight_format="bf16", kernel="cpu", holding=(), num_experts=3,
    resident_bytes=4, num_clients=5, requests_served=6, requests_refused=7, rows_computed=8, tokens_given=9.0,
    compute_s=1.0, queue_s=2.0, bytes_up=10, bytes_down=11, up_bytes_per_s=12.0, down_bytes_per_s=13.0,
    month="2026-11", month_bytes=14, addresses=(CANARY,),
    limits=NodeLimits(ram_bytes=None, disk_bytes=None, threads=1, up_bytes_per_s=None, down_bytes_per_s=None,
                      monthly_bytes=None),
)  # fmt: skip


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_telemetry_is_off_unless_it_is_asked_for() -> None:
    assert NodeSettings(Path("m")).mqtt is None


@pytest.mark.parametrize("host", ["broker.example", "192.168.1.4", "0.0.0.0", "localhost.example", "::"])
def test_figures_never_cross_a_network_in_the_clear(host: str) -> None:
    with pytest.raises(InsecureTelemetry):
        check_mqtt(MqttSettings(host, tls=False))


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_on_loopback_no_tls_is_needed(host: str) -> None:
    check_mqtt(MqttSettings(host, tls=False))


@pytest.mark.parametrize("wrong", [{"topic": "a/#"}, {"topic": "$SYS"}, {"discovery_prefix": "+"}, {"period_s": 0.1}])
def test_impossible_settings_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(InvalidRequest):
        check_mqtt(replace(MqttSettings("b.example"), **wrong))  # type: ignore[arg-type]


def test_only_the_listed_figures_are_said() -> None:
    said = json.loads(state_message(STATUS))
    assert list(said) == [figure.name for figure in FIGURES]
    everything = state_message(STATUS) + json.dumps(discovery_messages("homeassistant", "shoal", STATUS))
    assert CANARY not in everything


def test_home_assistant_is_told_of_every_figure_once() -> None:
    told = {topic: json.loads(message) for topic, message in discovery_messages("ha", "shoal", STATUS).items()}
    assert len(told) == len({each["unique_id"] for each in told.values()}) == len(FIGURES)
    assert told["ha/sensor/shoal_node/bytes_up/config"]["unit_of_measurement"] == "B"
    assert discovery_messages("", "shoal", STATUS) == {}


def test_a_broker_that_is_away_is_asked_again_and_later_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    lost: list[TelemetryLost] = []
    waits: list[float] = []

    async def main() -> None:
        enough = asyncio.Event()

        async def wait(seconds: float) -> None:
            waits.append(seconds)
            if len(waits) == 4:
                enough.set()
                await asyncio.Event().wait()

        monkeypatch.setattr("shoal.node.telemetry.telemetry.log_event", lost.append)
        monkeypatch.setattr("shoal.node.telemetry.telemetry.asyncio.sleep", wait)
        settings = MqttSettings("127.0.0.1", free_port(), tls=False)
        task = asyncio.create_task(send_telemetry(settings, lambda: STATUS, lambda: 0.5))
        await enough.wait()
        task.cancel()
        await asyncio.wait({task})

    asyncio.run(main())
    assert waits == [1, 2, 4, 8]
    assert len(lost) == 4


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[int]:
    """Debian's mosquitto on a free port of loopback."""
    program = shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")
    if program is None:
        pytest.skip("needs mosquitto: apt-get install mosquitto")
    port = free_port()
    config = tmp_path / "mosquitto.conf"
    config.write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\n")
    process = subprocess.Popen([program, "-c", str(config)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield port
    finally:
        process.terminate()
        process.wait()


@pytest.mark.socket
def test_a_broker_keeps_the_state_and_says_when_the_node_has_gone(broker: int) -> None:
    import aiomqtt

    async def seen(topic: str, wanted: str) -> str:
        """The first message of a topic that holds some words; asks until the broker is up."""
        while True:
            try:
                async with aiomqtt.Client("127.0.0.1", broker) as client:
                    await client.subscribe(topic, qos=1)
                    async for message in client.messages:
                        if wanted in bytes(message.payload).decode():
                            return bytes(message.payload).decode()
            except aiomqtt.MqttError:
                await asyncio.sleep(0)

    async def main() -> None:
        settings = MqttSettings("127.0.0.1", broker, tls=False, period_s=1.0)
        await seen("$SYS/broker/version", "mosquitto")
        task = asyncio.create_task(send_telemetry(settings, lambda: STATUS, lambda: 0.5))
        assert json.loads(await seen("shoal/node/state", "serving"))["tokens_given"] == 9.0
        assert await seen("shoal/node/availability", "online") == "online"
        assert "state_topic" in await seen("homeassistant/sensor/shoal_node/state/config", "shoal")
        task.cancel()
        await asyncio.wait({task})
        assert await seen("shoal/node/availability", "offline") == "offline"

    asyncio.run(asyncio.wait_for(main(), 60))
