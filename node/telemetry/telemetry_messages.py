"""What telemetry says of a node, as MQTT topics and JSON: a pure function of its status.

A closed list of figures about this machine. What is routed, for whom, from where, and every text, is not in it.
"""

import json
import re
from dataclasses import dataclass

from shoal.protocol.control import NodeStatus

ONLINE, OFFLINE = "online", "offline"


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure as Home Assistant shows it (its MQTT sensor's device_class, state_class and unit of measurement)."""

    name: str
    unit: str = ""
    device_class: str = ""
    state_class: str = ""


FIGURES = (
    Figure("state"),
    Figure("pause_reason"),
    Figure("num_experts", state_class="measurement"),
    Figure("resident_bytes", "B", "data_size", "measurement"),
    Figure("num_clients", state_class="measurement"),
    Figure("requests_served", state_class="total_increasing"),
    Figure("requests_refused", state_class="total_increasing"),
    Figure("tokens_given", state_class="total_increasing"),
    Figure("compute_s", "s", "duration", "total_increasing"),
    Figure("queue_s", "s", "duration", "measurement"),
    Figure("bytes_up", "B", "data_size", "total_increasing"),
    Figure("bytes_down", "B", "data_size", "total_increasing"),
    Figure("up_bytes_per_s", "B/s", "data_rate", "measurement"),
    Figure("down_bytes_per_s", "B/s", "data_rate", "measurement"),
    Figure("month_bytes", "B", "data_size", "total_increasing"),
)
"""All that is sent: names of NodeStatus."""


def state_topic(topic: str, node: str) -> str:
    """The node's figures, retained."""
    return f"{topic}/{node}/state"


def availability_topic(topic: str, node: str) -> str:
    """`online`, or `offline` by the node's goodbye or its last will; retained."""
    return f"{topic}/{node}/availability"


def state_message(status: NodeStatus) -> str:
    """All figures as one JSON object."""
    return json.dumps({figure.name: getattr(status, figure.name) for figure in FIGURES})


def discovery_messages(prefix: str, topic: str, status: NodeStatus) -> dict[str, str]:
    """Topic to message for every figure: Home Assistant's MQTT discovery
    (https://www.home-assistant.io/integrations/mqtt/#mqtt-discovery). Empty without a prefix.
    """
    if not prefix:
        return {}
    ident = re.sub(r"[^A-Za-z0-9_-]", "_", f"{topic}_{status.name}")
    device = {"identifiers": [ident], "name": f"shoal {status.name}", "model": "node", "sw_version": status.version}
    return {
        f"{prefix}/sensor/{ident}/{figure.name}/config": json.dumps(
            {
                "name": figure.name.replace("_", " "),
                "unique_id": f"{ident}_{figure.name}",
                "state_topic": state_topic(topic, status.name),
                "availability_topic": availability_topic(topic, status.name),
                "value_template": "{{ value_json.%s }}" % figure.name,  # noqa: UP031  # braces are Home Assistant's
                "device": device,
                **{
                    key: value
                    for key, value in (
                        ("unit_of_measurement", figure.unit),
                        ("device_class", figure.device_class),
                        ("state_class", figure.state_class),
                    )
                    if value
                },
            }
        )
        for figure in FIGURES
    }
