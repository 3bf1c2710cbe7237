"""Where a node's figures go by MQTT, if its owner wants that: settings, and the refusal of what would leak them."""

import importlib.util
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated

from msgspec import Meta

from shoal.protocol.errors import InsecureTelemetry, InvalidRequest

MIN_PERIOD_S = 1.0


@dataclass(frozen=True, slots=True)
class MqttSettings:
    """`[telemetry.mqtt]`. Without the table nothing is sent anywhere."""

    host: str
    """The broker."""

    port: Annotated[int, Meta(ge=1, le=65535)] = 8883
    """TCP port. Default: MQTT over TLS; 1883 is usual without."""

    tls: bool = True
    """Encrypt and check the broker's certificate. False is allowed on loopback only."""

    ca_file: Path | None = None
    """Certificates to trust, PEM, for a broker at home that signs its own. None: the system's."""

    username: str = ""
    """At the broker. Empty: none."""

    password_file: Path | None = None
    """File that holds the password alone; a password in the settings would be read by whoever reads them."""

    topic: str = "shoal"
    """Topics begin with it: `shoal/NAME/state`, `shoal/NAME/availability`."""

    discovery_prefix: str = "homeassistant"
    """Where Home Assistant looks for devices. Empty: none are told."""

    period_s: Annotated[float, Meta(ge=MIN_PERIOD_S)] = 30.0
    """Between two states: a dashboard needs no more, and a month of it is 40 MB."""


def check_mqtt(settings: MqttSettings) -> None:
    """
    Raises:
        InsecureTelemetry: neither TLS nor loopback. InvalidRequest: an impossible value, or aiomqtt is not installed.
    """
    if not settings.tls and not _is_loopback(settings.host):
        raise InsecureTelemetry(settings.host)
    if settings.period_s < MIN_PERIOD_S:
        raise InvalidRequest(f"telemetry.mqtt.period_s is {settings.period_s:g}; at least {MIN_PERIOD_S:g} is needed")
    for name, words in (("topic", settings.topic), ("discovery_prefix", settings.discovery_prefix)):
        if any(sign in words for sign in "#+\0") or words.startswith(("/", "$")):
            raise InvalidRequest(f"telemetry.mqtt.{name} is {words!r}; it may hold no # or + and begin with no / or $")
    if importlib.util.find_spec("aiomqtt") is None:
        raise InvalidRequest("[telemetry.mqtt] needs aiomqtt; try: pip install 'shoal[mqtt]'")


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
