"""Peers with real daemons that share a directory, for tests of it."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from shoal.protocol.identity import Identity
from shoal.protocol.ids import ExpertId, LayerId
from shoal.protocol.net.hivemind_dht import HivemindDirectory, join_dht
from shoal.protocol.net.p2pd import P2pd, start_p2pd
from shoal.protocol.records import HolderRecord, NodeRecord

IDENTITIES = [Identity.from_seed(bytes(31) + bytes([number])) for number in range(7)]
ROOT = bytes(range(32))
LAYER = LayerId(7)


class LeapClock:
    """Unix time, which a test may let leap for everybody at once."""

    def __init__(self) -> None:
        self.ahead_s = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead_s


def record_of(identity: Identity, expert: int = 3) -> NodeRecord:
    """A node that holds two experts of `LAYER` and one of the next."""
    return NodeRecord(
        peer=identity.peer,
        model_root=ROOT,
        experts={LAYER: frozenset({ExpertId(expert), ExpertId(200)}), LayerId(8): frozenset({ExpertId(1)})},
        weight_format=1,
        roundings=3,
        kernel_class=1,
        capacity_mmacs=5,
        queue_ms=2,
        addresses=("127.0.0.1:4567", f"/ip4/127.0.0.1/tcp/4568/p2p/{identity.peer}"),
    )


@asynccontextmanager
async def swarm(
    num_nodes: int, clock: Callable[[], float] = time.time
) -> AsyncIterator[tuple[list[P2pd], list[HivemindDirectory]]]:
    """Nodes that all bootstrap at the first."""
    daemons = list(await asyncio.gather(*(start_p2pd(identity) for identity in IDENTITIES[:num_nodes])))
    directories: list[HivemindDirectory] = []
    try:
        for daemon, identity in zip(daemons, IDENTITIES, strict=False):
            bootstrap = daemons[0].addresses if directories else ()
            directories.append(await join_dht(daemon, identity, bootstrap, clock))
        yield daemons, directories
    finally:
        for directory in directories:
            await directory.aclose()
        for daemon in daemons:
            await daemon.aclose()


async def find(directory: HivemindDirectory) -> list[HolderRecord]:
    """What the directory says of `LAYER` now."""
    return (await directory.lookup(ROOT, [LAYER]))[LAYER]
