"""Real nodes tell real brokers how they are: amqtt and mosquitto (`make test-mqtt`; no part of `make test`)."""

import asyncio
import json
import re
import ssl
import subprocess
import sys
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import aiomqtt
import pytest

from shoal.node.telemetry.telemetry_messages import FIGURES
from tests.mqtt.brokers import BrokerSettings, certificate, free_port, running_broker
from tests.swarm.test_processes import environment, running_node, shoal  # noqa: F401  (the first is a fixture)

TIMEOUT_S = 100.0
RETRY_S = 0.1
CANARY = "xylophonist marmalade"
UNITS = {"data_size": {"B"}, "data_rate": {"B/s"}, "duration": {"s"}}
"""Home Assistant's device classes with the units that it takes, as far as we use them
(https://www.home-assistant.io/integrations/sensor/#device-class)."""

Environment = dict[str, str]
StartBroker = Callable[[BrokerSettings], AbstractContextManager[None]]


@pytest.fixture(params=["amqtt", "mosquitto"])
def start(request: pytest.FixtureRequest, tmp_path: Path) -> StartBroker:
    return lambda settings: running_broker(request.param, settings, tmp_path)


def configure(environment: Environment, port: int, **more: object) -> None:  # noqa: F811
    """Turn telemetry on for all nodes of a test."""
    path = Path(environment["XDG_CONFIG_HOME"]) / "shoal" / "shoal.toml"
    table = {"host": "127.0.0.1", "port": port, "tls": False, "period_s": 1.0, **more}
    lines = [f"{name} = {json.dumps(value)}" for name, value in table.items()]
    path.write_text(path.read_text() + "\n".join(["[telemetry.mqtt]", *lines, ""]))


async def received(
    broker: BrokerSettings, topic: str, is_wanted: Callable[[str], bool], context: ssl.SSLContext | None = None
) -> tuple[str, bool]:
    """The first message of a topic that is wanted, and whether the broker had kept it; waits for the broker.

    amqtt 0.12.1 now and then delivers what another connection had asked for: topics are looked at everywhere.
    """
    while True:
        try:
            async with aiomqtt.Client(
                "127.0.0.1", broker.port, username=broker.username or None, password=broker.password or None,
                tls_context=context,
            ) as client:  # fmt: skip
                await client.subscribe(topic, qos=1)
                async for message in client.messages:
                    if str(message.topic) == topic and is_wanted(text := bytes(message.payload).decode()):
                        return text, message.retain
        except aiomqtt.MqttError:
            await asyncio.sleep(RETRY_S)


def within_time(awaited: Coroutine[Any, Any, Any] | Awaitable[Any]) -> Any:
    async def main() -> Any:
        async with asyncio.timeout(TIMEOUT_S):
            return await awaited

    return asyncio.run(main())


def state_of(broker: BrokerSettings, node: str = "node", context: ssl.SSLContext | None = None) -> dict[str, Any]:
    text, _ = within_time(received(broker, f"shoal/{node}/state", lambda said: True, context))
    return dict(json.loads(text))


def is_online(broker: BrokerSettings, words: str) -> None:
    """Return when the broker says so."""
    within_time(received(broker, "shoal/node/availability", lambda said: said == words))


def test_who_comes_later_is_told_the_newest_state(start: StartBroker, environment: Environment) -> None:  # noqa: F811
    broker = BrokerSettings(free_port())
    configure(environment, broker.port)
    with start(broker), running_node(environment, "--experts", "0-3"):
        said = state_of(broker)
        assert list(said) == [figure.name for figure in FIGURES]
        assert (said["state"], said["num_experts"]) == ("serving", 20)
        is_online(broker, "online")
        assert within_time(received(broker, "shoal/node/state", lambda said: True))[1], "not retained"
        shoal(environment, "pause")
        within_time(received(broker, "shoal/node/state", lambda text: json.loads(text)["pause_reason"] == "user"))
        assert state_of(broker)["state"] == "paused"  # what was kept is the newest


def test_a_node_that_leaves_says_goodbye_and_one_that_is_killed_has_a_last_will(
    start: StartBroker,
    environment: Environment,  # noqa: F811
) -> None:
    broker = BrokerSettings(free_port())
    configure(environment, broker.port)
    with start(broker):
        with running_node(environment, "--experts", "0"):
            is_online(broker, "online")
        is_online(broker, "offline")
        with running_node(environment, "--experts", "0") as (node, _):
            is_online(broker, "online")
            node.kill()
            is_online(broker, "offline")
        assert within_time(received(broker, "shoal/node/availability", lambda said: True)) == ("offline", True)


def test_home_assistant_can_make_a_device_of_what_it_is_told(start: StartBroker, environment: Environment) -> None:  # noqa: F811
    broker = BrokerSettings(free_port())
    configure(environment, broker.port)

    async def discovered() -> dict[str, dict[str, Any]]:
        found: dict[str, dict[str, Any]] = {}
        async with aiomqtt.Client("127.0.0.1", broker.port) as client:
            await client.subscribe("homeassistant/#", qos=1)
            async for message in client.messages:
                if str(message.topic).startswith("homeassistant/"):
                    found[str(message.topic)] = json.loads(bytes(message.payload))
                if len(found) == len(FIGURES):
                    break
        return found

    with start(broker), running_node(environment, "--experts", "0"):
        said = state_of(broker)
        configs = within_time(discovered())
    assert len({config["unique_id"] for config in configs.values()}) == len(FIGURES)
    assert len({json.dumps(config["device"], sort_keys=True) for config in configs.values()}) == 1
    for topic, config in configs.items():
        assert re.fullmatch(r"homeassistant/sensor/[a-zA-Z0-9_-]+/[a-zA-Z0-9_-]+/config", topic)
        assert (config["state_topic"], config["availability_topic"]) == ("shoal/node/state", "shoal/node/availability")
        name = re.fullmatch(r"\{\{ value_json\.(\w+) \}\}", config["value_template"])
        assert name is not None
        value = said[name[1]]
        assert (config.get("state_class") is None) == (value is None or isinstance(value, str))
        if kind := config.get("device_class"):
            assert config["unit_of_measurement"] in UNITS[kind]


def test_by_tls_the_brokers_certificate_is_checked_and_a_strangers_gets_nothing(
    start: StartBroker,
    environment: Environment,  # noqa: F811
    tmp_path: Path,
) -> None:
    certfile, keyfile = certificate(tmp_path, "broker")
    stranger, _ = certificate(tmp_path, "stranger")
    broker = BrokerSettings(free_port(), str(certfile), str(keyfile))
    trusting = ssl.create_default_context(cafile=certfile)
    configure(environment, broker.port, tls=True, ca_file=str(certfile))
    with start(broker):
        with running_node(environment, "--experts", "0", "--name", "trusting"):
            assert state_of(broker, "trusting", trusting)["state"] == "serving"
        config = Path(environment["XDG_CONFIG_HOME"]) / "shoal" / "shoal.toml"
        config.write_text(config.read_text().replace(str(certfile), str(stranger)))
        with running_node(environment, "--experts", "0", "--name", "wary"):
            error = until_logged(environment, "wary", "telemetry_lost")["error"]
            assert "SSL" in str(error) or error == "MqttError"
            assert shoal(environment, "status", "--name", "wary").returncode == 0
        topics = within_time(topics_of(broker, trusting))
    assert "shoal/trusting/state" in topics
    assert not [topic for topic in topics if "wary" in topic]


def until_logged(environment: Environment, name: str, event: str) -> dict[str, Any]:  # noqa: F811
    """The fields of the first such event that a node logs."""
    command = [sys.executable, "-u", "-m", "shoal.cli", "logs", "-f", "-n", "1000", "--json", "--name", name]
    with subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE) as logs:
        assert logs.stdout is not None
        try:
            lines = (json.loads(line) for line in logs.stdout)
            return next(dict(line["fields"]) for line in lines if line["event"] == event)
        finally:
            logs.kill()


async def topics_of(broker: BrokerSettings, context: ssl.SSLContext | None = None) -> list[str]:
    """All topics of which the broker has kept a message: those before one that is sent last."""
    mark, found = "suite/mark", list[str]()
    async with aiomqtt.Client("127.0.0.1", broker.port, tls_context=context) as client:
        await client.publish(mark, "x", qos=1, retain=False)
        await client.subscribe("#", qos=1)
        await client.publish(mark, "y", qos=1)
        async for message in client.messages:
            if str(message.topic) == mark:
                return found
            found.append(str(message.topic))
    return found


def test_a_wrong_password_is_a_line_in_the_log_and_the_right_one_lets_in(
    start: StartBroker,
    environment: Environment,  # noqa: F811
    tmp_path: Path,
) -> None:
    broker = BrokerSettings(
        free_port(), username="node", password="right", password_file=str(tmp_path / "broker.passwords")
    )  # fmt: skip
    password = tmp_path / "password"
    password.write_text("wrong\n")
    configure(environment, broker.port, username="node", password_file=str(password))
    with start(broker), running_node(environment, "--experts", "0"):
        until_logged(environment, "node", "telemetry_lost")
        assert shoal(environment, "status").returncode == 0
        password.write_text("right\n")
        assert state_of(broker)["state"] == "serving"


def test_a_broker_that_comes_back_is_told_again(start: StartBroker, environment: Environment) -> None:  # noqa: F811
    broker = BrokerSettings(free_port())
    configure(environment, broker.port)
    with running_node(environment, "--experts", "0"):
        until_logged(environment, "node", "telemetry_lost")  # it was not there yet
        with start(broker):
            assert state_of(broker)["state"] == "serving"
        assert shoal(environment, "status").returncode == 0
        with start(broker):  # it has forgotten everything
            assert state_of(broker)["state"] == "serving"
            is_online(broker, "online")


def test_in_the_clear_off_loopback_the_node_does_not_start(environment: Environment) -> None:  # noqa: F811
    configure(environment, 1883, host="192.0.2.1")
    done = shoal(environment, "node", "--experts", "0", "--open")
    assert done.returncode == 2
    assert "192.0.2.1" in done.stderr


def test_what_is_asked_and_answered_is_on_no_topic(start: StartBroker, environment: Environment) -> None:  # noqa: F811
    broker = BrokerSettings(free_port())
    configure(environment, broker.port)

    async def everything_until(is_last: Callable[[str], bool]) -> str:
        heard: list[str] = []
        async with aiomqtt.Client("127.0.0.1", broker.port) as client:
            await client.subscribe("#", qos=1)
            async for message in client.messages:
                heard += [str(message.topic), text := bytes(message.payload).decode()]
                if is_last(text):
                    break
        return "\n".join(heard)

    with start(broker), running_node(environment, "--experts", "all") as (_, token):
        asked = ("run", f"{CANARY} {CANARY}", "--join", token, "--max-tokens", "24", "--json")
        done = shoal(environment, *asked)
        assert done.returncode == 0, done.stderr
        served = json.loads(shoal(environment, "status", "--json").stdout)["requests_served"]
        heard = within_time(everything_until(lambda text: f'"requests_served": {served}' in text))
    secrets = [*CANARY.split(), token, *(word for word in json.loads(done.stdout)["text"].split() if len(word) > 6)]
    assert [secret for secret in secrets if secret in heard] == []
