"""Sends a node's figures to an MQTT broker while it runs; a broker that is away never disturbs the node.

One task of its own: it holds no queue, sends the newest state or none, and after a failure waits longer each time.
What is sent is `telemetry_messages.py`; where to, `mqtt_settings.py`.
"""

import asyncio
import ssl
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from shoal.node.log_events import TelemetryConnected, TelemetryLost, log_event
from shoal.node.telemetry.mqtt_settings import MqttSettings
from shoal.node.telemetry.telemetry_messages import (
    OFFLINE,
    ONLINE,
    availability_topic,
    discovery_messages,
    state_message,
    state_topic,
)
from shoal.protocol.control import NodeStatus

if TYPE_CHECKING:
    from aiomqtt import Client

TIMEOUT_S = 10.0
"""For every exchange with the broker; a broker on a LAN answers in milliseconds."""

GOODBYE_S = 1.0
"""What the goodbye may cost a node that ends; the last will says the same later."""

MIN_RETRY_S, MAX_RETRY_S = 1.0, 300.0
"""The wait after a failure doubles between these, times 0.5 to 1.5: nodes do not come back all at once."""

MAX_QUEUED = 64
"""Messages that the library may hold; a discovery is 15."""


async def send_telemetry(
    settings: MqttSettings, status: Callable[[], NodeStatus], uniform: Callable[[], float]
) -> None:
    """Connect, say the state at every period, for ever; reconnect when the line breaks.

    uniform: a random number in [0, 1). Settings are checked already.
    Cancellation: tells the broker `offline` within GOODBYE_S; what was sent before stays.
    """
    import aiomqtt

    wait_s = MIN_RETRY_S
    while True:
        try:
            async with asyncio.timeout(None) as patience, await _client(settings, status().name) as client:
                log_event(TelemetryConnected())
                wait_s = MIN_RETRY_S
                await _report(client, settings, status, patience)
        except (aiomqtt.MqttError, OSError, TimeoutError) as error:  # ssl.SSLError and a password file are OSErrors
            log_event(TelemetryLost(type(error).__name__, wait_s))
        await asyncio.sleep(wait_s * (0.5 + uniform()))
        wait_s = min(2 * wait_s, MAX_RETRY_S)


async def _client(settings: MqttSettings, name: str) -> "Client":
    """Not connected yet; files are read on a thread."""
    import aiomqtt

    password, context = await asyncio.to_thread(_secrets, settings)
    return aiomqtt.Client(
        settings.host,
        settings.port,
        username=settings.username or None,
        password=password,
        will=aiomqtt.Will(availability_topic(settings.topic, name), OFFLINE, qos=1, retain=True),
        timeout=TIMEOUT_S,
        max_queued_outgoing_messages=MAX_QUEUED,
        tls_context=context,
    )


def _secrets(settings: MqttSettings) -> tuple[str | None, ssl.SSLContext | None]:
    """The password and what the broker's certificate is checked by."""
    file = settings.password_file
    password = file.read_text(encoding="utf-8").strip() if file else None
    context = ssl.create_default_context(cafile=settings.ca_file) if settings.tls else None
    return password, context


async def _report(
    client: "Client", settings: MqttSettings, status: Callable[[], NodeStatus], patience: asyncio.Timeout
) -> None:
    """Say that we are there, what we are, and then how we are."""
    import aiomqtt

    now, loop = status(), asyncio.get_running_loop()
    online = availability_topic(settings.topic, now.name)
    for topic, message in discovery_messages(settings.discovery_prefix, settings.topic, now).items():
        await client.publish(topic, message, qos=1, retain=True)
    await client.publish(online, ONLINE, qos=1, retain=True)
    try:
        while True:
            patience.reschedule(loop.time() + settings.period_s + TIMEOUT_S)
            await client.publish(state_topic(settings.topic, now.name), state_message(status()), qos=1, retain=True)
            await asyncio.sleep(settings.period_s)
    except asyncio.CancelledError:
        with suppress(aiomqtt.MqttError, TimeoutError):  # the last will says it otherwise
            async with asyncio.timeout(GOODBYE_S):
                await client.publish(online, OFFLINE, qos=1, retain=True)
        raise
