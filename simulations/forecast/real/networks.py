"""The networks that the forecast is held against, and those that it is calibrated on: no network is in both."""

from collections.abc import Sequence
from dataclasses import dataclass

from shoal.simulations.wan.link import Link

BYTES_PER_MBIT = 125_000


@dataclass(frozen=True, slots=True)
class Shape:
    """A swarm: nodes that share the experts in equal parts, `replicas` times."""

    nodes: int
    replicas: int = 1


@dataclass(frozen=True, slots=True)
class RealSetting:
    """A swarm on a network, and what is asked of it."""

    shape: Shape
    rtt_ms: float
    mbit_per_s: float
    """Of every machine, each way."""
    streams: int = 1
    loss: float = 0.0
    """Share of packets, each way."""
    prompt: int = 0
    """Tokens; more than 0: the time to the first token is what is measured, of a connection that was idle before."""

    @property
    def name(self) -> str:
        """For a table."""
        words = [f"{self.shape.nodes} nodes", f"{self.rtt_ms:g} ms", f"{self.mbit_per_s:g} Mbit/s"]
        if self.shape.replicas > 1:
            words.insert(1, f"{self.shape.replicas} replicas")
        if self.loss:
            words.append(f"loss {100 * self.loss:g} %")
        return ", ".join([*words, f"prompt of {self.prompt}" if self.prompt else f"streams: {self.streams}"])

    @property
    def link(self) -> Link:
        """Of every machine."""
        return Link(self.rtt_ms, self.loss, self.mbit_per_s * BYTES_PER_MBIT)


TWO, FOUR, EIGHT = Shape(2), Shape(4), Shape(8, 2)

SETTINGS = (
    RealSetting(TWO, 5, 1000),
    RealSetting(TWO, 20, 100),
    RealSetting(TWO, 50, 100, loss=0.01),
    RealSetting(TWO, 20, 20, streams=8),
    RealSetting(TWO, 20, 100, prompt=512),
    RealSetting(TWO, 50, 20, prompt=256),
    RealSetting(FOUR, 0, 1000),
    RealSetting(FOUR, 5, 100),
    RealSetting(FOUR, 20, 1000),
    RealSetting(FOUR, 50, 20),
    RealSetting(FOUR, 20, 100, streams=8),
    RealSetting(FOUR, 5, 20, prompt=1024),
    RealSetting(FOUR, 50, 100, prompt=1024),
    RealSetting(EIGHT, 5, 1000),
    RealSetting(EIGHT, 20, 100, loss=0.01),
    RealSetting(EIGHT, 50, 100, streams=4),
)
"""What is compared."""

QUICK = tuple(each for each in SETTINGS if each.shape != EIGHT and each.rtt_ms in (5, 20))
"""Those of a few minutes."""

PAUSES_MS = (0.0, 2.0, 5.0, 20.0)
"""How long the client waits before each layer in calibrations: what was idle computes more slowly."""

CALIBRATED = (Shape(1), Shape(2))
"""Swarms that the calibration starts, without delay and limit: one stream, eight, and one chunk of a prompt."""


def by_shape(settings: Sequence[RealSetting]) -> dict[Shape, list[RealSetting]]:
    """A swarm is started once for all that is asked of it."""
    shapes: dict[Shape, list[RealSetting]] = {}
    for setting in settings:
        shapes.setdefault(setting.shape, []).append(setting)
    return shapes
