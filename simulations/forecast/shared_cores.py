"""The machine that client, nodes and network are all processes of, where a swarm is emulated on one.

Swarms on one machine (`shoal simulate --local`, `validate --real`) are such; machines of their own are not.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SharedMachine:
    """Its cores, and what carrying packets costs it."""

    cores: int
    relay_frame_us: float = 0.0
    """Processor time of the emulated network for a frame, each way."""
    relay_packet_us: float = 0.0
    """The same for each of its packets."""
    wake_us: float = 0.0
    """Per exchange, without processor time: processes that sleep until a packet comes take a moment to run."""

    def relay_s(self, num_packets: int) -> float:
        """Processor time for one frame."""
        return (self.relay_frame_us + num_packets * self.relay_packet_us) / 1e6
