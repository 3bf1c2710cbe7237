"""What a node says of itself in the directory: "I hold these experts, in this format, and here is where I am".

One record a node, for all layers; how it is signed and written is `record_codec.py`, how it is kept alive `pulses.py`
(PROTOCOL.md §7). A record is a hint until its holder passes a known-answer challenge.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from blake3 import blake3

from shoal.protocol.ids import ExpertId, LayerId, PeerId
from shoal.protocol.version import DIRECTORY_KEY_CONTEXT

MAX_ZONE_BYTES = 16

Experts = Mapping[LayerId, frozenset[ExpertId]]
"""Experts by layer; a layer without any is left out."""

NOBODY: frozenset[ExpertId] = frozenset()


@dataclass(frozen=True, slots=True)
class NodeRecord:
    """One node's claim for one model.

    `roundings`: bit r set = serves rounding r. `kernel_class`: 0 reference, 1 cpu, 2 cuda. `capacity_mmacs`: millions
    of multiply-accumulates per second that it offers, 0 = not measured. `addresses`: `direct` ones as `host:port`,
    libp2p ones as multiaddrs. Without `experts` and `cold` it withdraws; what is `coming` is not served yet.
    """

    peer: PeerId
    model_root: bytes
    experts: Experts
    weight_format: int
    roundings: int
    kernel_class: int
    capacity_mmacs: int
    queue_ms: int
    addresses: tuple[str, ...]
    coming: Experts = field(default_factory=dict)
    """Experts that it is about to hold: others need not take them."""
    since_s: int = 0
    """Unix time at which it began to be a holder, whatever it held then; 0: not said."""
    room: int = 0
    """Experts, of any layer, that it would hold besides."""
    gives_trunk: bool = False
    """It has the whole trunk on its disk and gives it, by pieces (`node/seeding`)."""
    zone: str = ""
    """A name for its part of the network, chosen by its owner; at most 16 bytes of a-z, 0-9 and -. Empty: not said."""
    cold: Experts = field(default_factory=dict)
    """Experts that it reads from its disk when it is asked for them: slow, the last resort. What is in `experts` too is
    in memory. An anchor is who has no others."""
    read_ms: int = 0
    """What reading one of them takes it; 0: not said."""
    issued_ms: int = 0
    """Unix time at which it was signed; of two records of a node the later one counts. Set by `herald.py`."""
    pulse: bytes = b""
    """Pulse 0 of its chain. Set by `herald.py`."""
    voucher: bytes = b""
    """In a private swarm: the proof that its node is a member's (`membership.py`). Set by `herald.py`."""


@dataclass(frozen=True, slots=True)
class HolderRecord:
    """What a node's record says of one layer: nothing at all, if `experts`, `cold` and `coming` are empty."""

    peer: PeerId
    model_root: bytes
    layer: LayerId
    experts: frozenset[ExpertId]
    weight_format: int
    roundings: int
    kernel_class: int
    capacity_mmacs: int
    queue_ms: int
    addresses: tuple[str, ...]
    seq: int
    """The later of two records of a node has the higher one."""
    expires_at_s: float
    """Unix time, to the millisecond."""
    coming: frozenset[ExpertId] = NOBODY
    since_s: int = 0
    room: int = 0
    zone: str = ""
    gives_trunk: bool = False
    cold: frozenset[ExpertId] = NOBODY
    """None of `experts`."""
    read_ms: int = 0


def of_layer(record: NodeRecord, layer: LayerId, expires_at_s: float) -> HolderRecord:
    """What `record` says of a layer."""
    resident = record.experts.get(layer, NOBODY)
    return HolderRecord(
        record.peer, record.model_root, layer, resident, record.weight_format,
        record.roundings, record.kernel_class, record.capacity_mmacs, record.queue_ms, record.addresses,
        record.issued_ms, expires_at_s, record.coming.get(layer, NOBODY), record.since_s, record.room,
        record.zone, record.gives_trunk, record.cold.get(layer, NOBODY) - resident, record.read_ms,
    )  # fmt: skip


def roster_name(model_root: bytes) -> bytes:
    """The 32-byte name under which the holders of a model are found."""
    return blake3(DIRECTORY_KEY_CONTEXT + model_root).digest()


def is_zone(words: str) -> bool:
    """Whether this can be the name of a zone."""
    return re.fullmatch(rf"[a-z0-9-]{{1,{MAX_ZONE_BYTES}}}", words) is not None
