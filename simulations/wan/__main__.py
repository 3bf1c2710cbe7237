"""`python -m shoal.simulations.wan`: how exact the relay is on this machine, and what it carries. Needs root."""

import asyncio
import json
import sys
from dataclasses import asdict
from multiprocessing.context import ForkServerContext

from shoal.simulations.bench.machine import congestion_control, describe_machine, git_commit
from shoal.simulations.fork_server import start_fork_server
from shoal.simulations.wan.link import Link
from shoal.simulations.wan.measure import measure_echo, measure_stream
from shoal.simulations.wan.namespace import why_no_namespaces
from shoal.simulations.wan.network import open_network

NUM_ECHOES = 400
ROUND_TRIPS_MS = (0.0, 1.0, 5.0, 50.0)
STREAMS = {
    "no limit": Link(),
    "5 ms": Link(5),
    "10 Mbit/s, 10 ms": Link(10, rate_bytes_per_s=1.25e6),
    "5 % loss, 10 ms": Link(10, loss=0.05),
}


async def measure(context: ForkServerContext) -> dict[str, object]:
    """All of it, in turn."""
    echoes, streams = [], {}
    for rtt_ms in ROUND_TRIPS_MS:
        async with open_network(context, [Link(rtt_ms)] * 2, 0) as network:
            echoes.append(asdict(await asyncio.to_thread(measure_echo, network, NUM_ECHOES)))
    for name, link in STREAMS.items():
        async with open_network(context, [link] * 2, 0) as network:
            streams[name] = asdict(await asyncio.to_thread(measure_stream, network))
    machine = describe_machine() | {"congestion_control": congestion_control()}
    return {"commit": git_commit(), "machine": machine, "echoes": echoes, "streams": streams}


def main() -> int:
    """Print one JSON object."""
    if reason := why_no_namespaces():
        print(f"no network namespaces: {reason}", file=sys.stderr)
        return 2
    print(json.dumps(asyncio.run(measure(start_fork_server())), indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
