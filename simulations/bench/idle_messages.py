"""What idle nodes tell each other in swarms that this machine can not hold: the directory's own calls, counted.

    python -m shoal.simulations.bench.idle_messages --peers 12 50 200

The real roster, keeper and herald of every node exchange real bytes under the virtual clock, as announcers, healers and
revocation watches make them; a private swarm. What libp2p adds to a call is a measured constant (docs/LOG.md), and what
it sends by itself is not in it: `idle_directory.py` measures that, with as many peers as there is room for.
"""

import argparse
import asyncio
import json
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from blake3 import blake3

from shoal.protocol.herald import Herald
from shoal.protocol.identity import Identity
from shoal.protocol.ids import PeerId
from shoal.protocol.limits import PULSE_PERIOD_S
from shoal.protocol.membership import Founder, Membership
from shoal.protocol.net.dht_keepers import NUM_CANDIDATES, Keepers
from shoal.protocol.net.dht_roster import Roster
from shoal.protocol.net.dht_sync import SyncPort
from shoal.protocol.record_keeper import RecordKeeper
from shoal.protocol.sync_messages import SyncReply, SyncRequest, decode_reply, encode_request
from shoal.simulations.bench.idle_directory import LOOK_S, ROOT, record_of, repeat
from shoal.simulations.bench.machine import git_commit
from shoal.simulations.virtual.loop import run_virtual

if TYPE_CHECKING:
    from hivemind.p2p import PeerID

CALL_BYTES = 1150
"""What a unary call costs beside its content, both ways, with packet headers: 1.1 to 1.2 kB, measured back to back."""

NUM_LAYERS, NUM_EXPERTS = 5, 32
"""What each peer holds; it does not matter once records are told."""

EPOCH_S = 1_800_000_000.0
SETTLE_S = 300.0
"""Searches and first records are over; a few rounds of pulses have gone by."""


class Wire(SyncPort):
    """Hands a request of ours to its keeper at once; `sent` counts the bytes of both ways by who sends them."""

    def __init__(self, us: RecordKeeper, keepers: dict[PeerId, RecordKeeper], sent: Counter[PeerId]) -> None:
        self._us, self._keepers, self._sent = us, keepers, sent

    async def call(self, peer: "PeerID", request: SyncRequest) -> SyncReply | None:
        them = PeerId(str(peer))
        asked = encode_request(replace(request, word=self._us.seal.word(self._us.us, them)))
        answered = self._keepers[them].answer(asked, self._us.us)
        self._sent[self._us.us] += len(asked) + CALL_BYTES // 2
        self._sent[them] += len(answered) + CALL_BYTES // 2
        return decode_reply(answered)


class Near(Keepers):
    """The keepers of a roster, known without a search."""

    def __init__(self, peers: Sequence[PeerId]) -> None:
        self._peers = peers

    async def find(self) -> "list[PeerID]":
        return list(self._peers)

    @property
    def is_stale(self) -> bool:
        return False


def nearest(us: PeerId, peers: Sequence[PeerId]) -> list[PeerId]:
    """The keepers that a search from `us` would find, by a hash as in the DHT."""
    others = [peer for peer in peers if peer != us]
    return sorted(others, key=lambda peer: blake3(ROOT + peer.encode()).digest())[:NUM_CANDIDATES]


async def live(identity: Identity, member: Membership, roster: Roster, keeper: RecordKeeper, first_s: float) -> None:
    """What a node that nobody asks does, for ever: its announcer's pulses, its healer's looks."""
    herald = Herald(identity, keeper_clock, member.vouch(identity.public_key))
    record = record_of(identity, NUM_LAYERS, NUM_EXPERTS)

    async def look() -> None:
        if not roster.is_fresh(1.5 * LOOK_S):
            await roster.look()

    async def tell() -> None:
        said = herald.say(record)
        keeper.book.add(said.data, identity.peer, keeper_clock(), said.index, said.pulse)
        await roster.tell(said)

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(repeat(PULSE_PERIOD_S, first_s, tell))
        tasks.create_task(repeat(LOOK_S, first_s, look))


def keeper_clock() -> float:
    """Unix time of the simulation."""
    return EPOCH_S + asyncio.get_running_loop().time()


async def measure(num_peers: int, seconds: float, entropy: random.Random) -> dict[str, object]:
    """kbit/s that a peer sends for the directory: the mean, and who sends most."""
    member = Founder(entropy.randbytes(32)).member(entropy.randbytes(16))
    identities = [Identity.from_seed(entropy.randbytes(32)) for _ in range(num_peers)]
    peers, sent = [identity.peer for identity in identities], Counter[PeerId]()
    keepers = {peer: RecordKeeper(keeper_clock, peer, member) for peer in peers}
    living = []
    for place, identity in enumerate(identities):
        keeper = keepers[identity.peer]
        near, wire = Near(nearest(identity.peer, peers)), Wire(keeper, keepers, sent)
        roster = Roster(keeper.seal.name(ROOT), identity.peer, near, wire, keeper, keeper_clock)
        acting = live(identity, member, roster, keeper, PULSE_PERIOD_S * place / num_peers)
        living.append(asyncio.create_task(acting))
    await asyncio.sleep(SETTLE_S)
    sent.clear()
    await asyncio.sleep(seconds)
    rates = sorted(8 * sent[peer] / 1000 / seconds for peer in peers)
    for task in living:
        task.cancel()
    await asyncio.wait(living)
    return {
        "peers": num_peers, "mean": round(sum(rates) / num_peers, 3), "median": round(rates[num_peers // 2], 3),
        "most": round(rates[-1], 2),
    }  # fmt: skip


def main() -> None:
    """Print one JSON object."""
    parser = argparse.ArgumentParser(description="What idle nodes tell each other, counted under the virtual clock.")
    parser.add_argument("--peers", type=int, nargs="+", default=[12, 50, 200])
    parser.add_argument("--seconds", type=float, default=400.0, help="of virtual time, to count for")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    rows = []
    for num_peers in given.peers:
        entropy = random.Random(given.seed)
        limit_s = SETTLE_S + given.seconds + 1
        rows.append(
            run_virtual(partial(measure, num_peers, given.seconds, entropy), random.Random(given.seed), limit_s)
        )
    print(json.dumps({"commit": git_commit(), "call_bytes": CALL_BYTES, "kbit_per_s_and_peer": rows}))


if __name__ == "__main__":
    main()
