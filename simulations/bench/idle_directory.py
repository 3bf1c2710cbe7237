"""What the directory alone costs idle nodes, by cause: open connections, then telling, then looking.

Many peers in one process, each with its own p2pd, in a network namespace of its own, so that nothing else is counted
(root, or a kernel that lets users have one):

    unshare --net --map-root-user sh -c 'ip link set lo up; python -m shoal.simulations.bench.idle_directory --peers 20'

Each cause is added to the ones before it while the loopback's counter runs; packet headers and acknowledgements are in
it. A private swarm, as is the default: its revocations are looked for as nodes look for them.
"""

import argparse
import asyncio
import json
import os
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from functools import partial

from shoal.protocol.identity import Identity
from shoal.protocol.ids import ExpertId, LayerId
from shoal.protocol.limits import PULSE_PERIOD_S, RECORD_TTL_S
from shoal.protocol.membership import Founder
from shoal.protocol.net.hivemind_dht import HivemindDirectory, join_dht
from shoal.protocol.net.p2pd import start_p2pd
from shoal.protocol.records import NodeRecord
from shoal.simulations.bench.idle_traffic import has_other_cards, loopback_bytes
from shoal.simulations.bench.machine import describe_machine, git_commit

ROOT = bytes(32)
SETTLE_S = 45.0
"""After a cause was added: first searches, and records that nobody has yet."""

LOOK_S = RECORD_TTL_S / 3
"""A healer's looks, and a revocation watch's."""

Step = tuple[str, float, Callable[[HivemindDirectory, NodeRecord], Awaitable[object]]]


async def tell(directory: HivemindDirectory, record: NodeRecord) -> None:
    """What a node's announcer does."""
    await directory.publish(record)


async def look(directory: HivemindDirectory, record: NodeRecord) -> None:
    """What a node's healer does when nothing is rare."""
    await directory.lookup(ROOT, list(record.experts), max_age_s=1.5 * LOOK_S)


async def watch(directory: HivemindDirectory, _record: NodeRecord) -> None:
    """What a node of a private swarm does besides."""
    await directory.posted()


STEPS: tuple[Step, ...] = (
    ("told", PULSE_PERIOD_S, tell),
    ("looked", LOOK_S, look),
    ("revocations", LOOK_S, watch),
)


def record_of(identity: Identity, num_layers: int, num_experts: int) -> NodeRecord:
    """A node that holds the first `num_experts` of the first `num_layers`."""
    held = frozenset(map(ExpertId, range(num_experts)))
    return NodeRecord(
        peer=identity.peer, model_root=ROOT, experts={LayerId(layer): held for layer in range(num_layers)},
        weight_format=1, roundings=3, kernel_class=1, capacity_mmacs=20_000, queue_ms=0,
        addresses=("192.0.2.7:4001", f"/ip4/192.0.2.7/tcp/4002/p2p/{identity.peer}"),
    )  # fmt: skip


async def repeat(period_s: float, first_s: float, act: Callable[[], Awaitable[object]]) -> None:
    """For ever, beginning after `first_s`."""
    await asyncio.sleep(first_s)
    while True:
        await act()
        await asyncio.sleep(period_s)


async def count(num_peers: int, seconds: float) -> float:
    """kbit/s that a peer sends."""
    before = loopback_bytes()
    await asyncio.sleep(seconds)
    return round((loopback_bytes() - before) * 8 / 1000 / seconds / num_peers, 3)


async def measure(num_peers: int, num_layers: int, num_experts: int, seconds: float) -> dict[str, object]:
    """kbit/s of each cause, with those before it."""
    member = Founder(os.urandom(32)).member(os.urandom(16))
    identities = [Identity.from_seed(os.urandom(32)) for _ in range(num_peers)]
    directories: list[HivemindDirectory] = []
    sent: dict[str, float] = {}
    async with AsyncExitStack() as stack:
        first: tuple[str, ...] = ()
        for identity in identities:
            p2pd = await start_p2pd(identity)
            stack.push_async_callback(p2pd.aclose)
            directory = await join_dht(p2pd, identity, first, time.time, membership=member, model_root=ROOT)
            stack.push_async_callback(directory.aclose)
            directories.append(directory)
            first = first or p2pd.addresses
        tasks = await stack.enter_async_context(asyncio.TaskGroup())
        await asyncio.sleep(SETTLE_S)
        sent["connections"] = await count(num_peers, seconds)
        running = []
        for name, period_s, act in STEPS:
            for place, (identity, directory) in enumerate(zip(identities, directories, strict=True)):
                record = record_of(identity, num_layers, num_experts)
                acting = repeat(period_s, period_s * place / num_peers, partial(act, directory, record))
                running.append(tasks.create_task(acting))
            await asyncio.sleep(SETTLE_S + period_s)
            sent[f"+ {name}"] = await count(num_peers, seconds)
        for task in running:
            task.cancel()
    return {
        **describe_machine(), "commit": git_commit(), "peers": num_peers, "layers": num_layers,
        "experts_per_layer": num_experts, "seconds": seconds, "kbit_per_s_and_peer": sent,
    }  # fmt: skip


def main() -> None:
    """Print one JSON object."""
    parser = argparse.ArgumentParser(description="What the directory costs idle nodes, by cause.")
    parser.add_argument("--peers", type=int, default=6)
    parser.add_argument("--layers", type=int, default=5, help="that each peer holds something of")
    parser.add_argument("--experts", type=int, default=32, help="of each of these layers")
    parser.add_argument("--seconds", type=float, default=120.0, help="to count for, for each cause")
    given = parser.parse_args()
    if has_other_cards():
        sys.exit("run it in a network namespace of its own; the module's first lines say how")
    print(json.dumps(asyncio.run(measure(given.peers, given.layers, given.experts, given.seconds))))


if __name__ == "__main__":
    main()
