"""What nodes send when nobody asks them anything: bytes of a swarm's loopback, per node and second.

In a network namespace of its own, so that nothing else is counted (root, or a kernel that lets users have one):

    unshare --net --map-root-user sh -c 'ip link set lo up; python -m shoal.simulations.bench.idle_traffic'

Real processes, demonstration model, no client. The interface counts packets with their headers, each once as sent; what
a node sends is therefore all of it divided by the number of nodes.
"""

import argparse
import asyncio
import json
import statistics
import sys
from pathlib import Path

from shoal.simulations.bench.machine import describe_machine, git_commit
from shoal.simulations.demo_model import MODEL_DIRECTORY
from shoal.simulations.fork_server import start_fork_server
from shoal.simulations.local import LocalSwarmSettings, local_swarm

COUNTERS = Path("/proc/net/dev")
SETTLE_S = 60.0
"""After the start: peers find each other, and two rounds of records have been published."""

ROUND_S = 30.0
"""Most of a renewal's period (40 s); several rounds make up for it."""


def loopback_bytes() -> int:
    """Sent over `lo` so far, by /proc/net/dev of this namespace."""
    line = next(line for line in COUNTERS.read_text(encoding="ascii").splitlines() if line.strip().startswith("lo:"))
    return int(line.split(":")[1].split()[8])


def has_other_cards() -> bool:
    """Whether this is no namespace of its own: other programs' traffic may be counted."""
    names = {line.split(":")[0].strip() for line in COUNTERS.read_text(encoding="ascii").splitlines()[2:]}
    return bool(names - {"lo"})


async def measure(num_nodes: int, rounds: int, num_experts: int) -> dict[str, object]:
    """Bytes per second and node of each round."""
    swarm = LocalSwarmSettings(MODEL_DIRECTORY, num_nodes, replicas=min(2, num_nodes))
    rates: list[float] = []
    async with local_swarm(start_fork_server(), swarm, num_experts):
        await asyncio.sleep(SETTLE_S)
        before = loopback_bytes()
        for _ in range(rounds):
            await asyncio.sleep(ROUND_S)
            now = loopback_bytes()
            rates.append((now - before) / ROUND_S / num_nodes)
            before = now
    return {
        **describe_machine(), "commit": git_commit(), "nodes": num_nodes, "rounds_s": ROUND_S,
        "bytes_per_s_and_node": {"median": statistics.median(rates), "lowest": min(rates), "highest": max(rates)},
        "kbit_per_s_and_node": statistics.mean(rates) * 8 / 1000,
    }  # fmt: skip


def main() -> None:
    """Print one JSON object."""
    parser = argparse.ArgumentParser(description="What idle nodes send.")
    parser.add_argument("--nodes", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--experts", type=int, default=32, help="of every layer, of the demonstration model")
    given = parser.parse_args()
    if has_other_cards():
        sys.exit("run it in a network namespace of its own; the module's first lines say how")
    print(json.dumps(asyncio.run(measure(given.nodes, given.rounds, given.experts))))


if __name__ == "__main__":
    main()
