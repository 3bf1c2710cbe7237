"""Peers with real daemons that share a directory, for tests of it."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from shoal.protocol.identity import Identity
from shoal.protocol.ids import ExpertId, LayerId
from shoal.protocol.membership import Membership
from shoal.protocol.net import hivemind_dht
from shoal.protocol.net.hivemind_dht import HivemindDirectory, join_dht
from shoal.protocol.net.p2pd import P2pd, start_p2pd
from shoal.protocol.records import HolderRecord, NodeRecord

IDENTITIES = [Identity.from_seed(bytes(31) + bytes([number])) for number in range(7)]
ROOT = bytes(range(32))
LAYER = LayerId(7)


PATIENCE_S = 60.0
"""For an exchange, where tests must not depend on how busy the machine is."""


class LeapClock:
    """Unix time, which stands still until a test lets it leap for everybody at once."""

    def __init__(self) -> None:
        self.now_s = float(int(time.time()))

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """No exchange fails because the machine is busy."""
    for name in ("WAIT_TIMEOUT_S", "LOOKUP_TIMEOUT_S", "PUBLISH_TIMEOUT_S"):
        monkeypatch.setattr(hivemind_dht, name, PATIENCE_S)


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
    num_nodes: int, clock: Callable[[], float] | None = None, membership: Membership | None = None
) -> AsyncIterator[tuple[list[P2pd], list[HivemindDirectory]]]:
    """Nodes that all bootstrap at the first. clock: everybody's; None: one that stands still. membership: of all."""
    clock = clock or LeapClock()
    daemons = list(await asyncio.gather(*(start_p2pd(identity) for identity in IDENTITIES[:num_nodes])))
    directories: list[HivemindDirectory] = []
    try:
        for daemon, identity in zip(daemons, IDENTITIES, strict=False):
            bootstrap = daemons[0].addresses if directories else ()
            directories.append(await join_dht(daemon, identity, bootstrap, clock, membership=membership))
        yield daemons, directories
    finally:
        for directory in directories:
            await directory.aclose()
        for daemon in daemons:
            await daemon.aclose()


async def find(directory: HivemindDirectory) -> list[HolderRecord]:
    """What the directory says of `LAYER` now."""
    return (await directory.lookup(ROOT, [LAYER]))[LAYER]
