"""How well the owner's limit on bytes is kept on real sockets: bytes per second of ten seconds against the limit.

A server that answers at once, a client that asks without end over TLS on loopback. Counted where the client reads and
writes, after two seconds in which buffers fill. Run: python -m shoal.simulations.bench.limits
"""

import asyncio
import os
import time
from dataclasses import dataclass

from shoal.protocol.identity import Identity
from shoal.protocol.messages import Dispatch, Partial
from shoal.protocol.net.channel import Channel, Reply, Request
from shoal.protocol.net.direct import DirectConnector, listen_direct
from shoal.protocol.net.throttle import Throttle, TokenBucket
from shoal.simulations.bench.machine import describe_machine, git_commit

WARM_UP_S = 2.0
MEASURED_S = 10.0
HIDDEN = 7168
RATES = (100_000, 1_000_000, 10_000_000)


@dataclass(frozen=True, slots=True)
class Measured:
    """One limit in one direction. `ratio`: bytes per second over the limit."""

    direction: str
    limit: int
    bytes_per_s: float

    @property
    def ratio(self) -> float:
        return self.bytes_per_s / self.limit


async def _answer(request: Request) -> Reply:
    message = Partial(request.request_hash, request.message.num_tokens, request.message.hidden, 0, 0)
    return Reply(message, bytes(message.body_size()))


async def _ask(channel: Channel, message: Dispatch) -> None:
    body = [bytes(message.body_size())]
    while True:
        await channel.request(message, body)


async def measure(direction: str, limit: int) -> Measured:
    """Ten seconds at one limit."""
    bucket = TokenBucket(limit, asyncio.get_running_loop().time)
    throttle = Throttle(up=bucket) if direction == "up" else Throttle(down=bucket)
    server, client = Identity.from_seed(os.urandom(32)), Identity.from_seed(os.urandom(32))
    listener = await listen_direct(server, "127.0.0.1", 0, _answer, os.urandom, throttle=throttle)
    connector = DirectConnector(client, os.urandom)
    channel = await connector.connect(server.peer, listener.addresses, 5.0)
    message = Dispatch(bytes(32), 3, 1, 2, 2, 1, HIDDEN, (7,), (1,), 60_000)
    asking = [asyncio.create_task(_ask(channel, message)) for _ in range(16)]
    await asyncio.sleep(WARM_UP_S)
    started, before = time.perf_counter(), _bytes(channel, direction)
    await asyncio.sleep(MEASURED_S)
    rate = (_bytes(channel, direction) - before) / (time.perf_counter() - started)
    for task in asking:
        task.cancel()
    await asyncio.gather(*asking, return_exceptions=True)
    await connector.aclose()
    await listener.aclose()
    return Measured(direction, limit, rate)


def _bytes(channel: Channel, direction: str) -> int:
    return channel.traffic.bytes_received if direction == "up" else channel.traffic.bytes_sent


async def main() -> None:
    """Print the machine, then a line for each limit and direction."""
    print(f"{describe_machine()}, commit {git_commit()}")
    for direction in ("up", "down"):
        for limit in RATES:
            found = await measure(direction, limit)
            print(
                f"{direction:<5} limit {limit:>11,} B/s  measured {found.bytes_per_s:>13,.0f} B/s  {found.ratio:6.3f}"
            )


if __name__ == "__main__":
    asyncio.run(main())
