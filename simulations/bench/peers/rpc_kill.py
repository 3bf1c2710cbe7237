"""SIGKILL to one machine in the middle of an answer: of llama.cpp's RPC servers, and of our holders."""

import asyncio
import re
import signal
from multiprocessing.context import ForkServerContext

from shoal.client.engine.sampler import Sampling
from shoal.simulations.arena import ArenaSettings, NetworkKind
from shoal.simulations.bench.peers.environments import NotAvailable
from shoal.simulations.bench.peers.rpc_peer import Peer
from shoal.simulations.bench.peers.rpc_servers import rpc_servers
from shoal.simulations.bench.peers.small_model import PROMPT_IDS
from shoal.simulations.local import LocalNode, LocalSwarmSettings
from shoal.simulations.trial import TrialSettings, run_trial
from shoal.simulations.wan.link import Link

NUM_TOKENS, KILL_AFTER = 48, 16
SERVERS, NODES, REPLICAS = 2, 4, 2


async def kill_theirs(peer: Peer) -> dict[str, object]:
    """One of two RPC servers: what becomes of the client."""
    async with rpc_servers(peer.environment, peer.folder, SERVERS) as servers:
        with peer.program("killed", servers) as llama:
            question = {"tokens": NUM_TOKENS, "streams": 1}
            await asyncio.to_thread(llama.ask, question)
            said = "went on"
            try:
                await asyncio.to_thread(llama.ask, question | {"kill": servers[-1].pid, "after": KILL_AFTER})
            except NotAvailable as error:
                said = without_folders(str(error))
    return {"system": "llama.cpp", "machines": SERVERS, "after_tokens": KILL_AFTER, "said": said}


async def kill_ours(context: ForkServerContext, peer: Peer) -> dict[str, object]:
    """One of four holders, two of every expert: the tokens against one process, and how long the call took longer."""
    swarm = LocalSwarmSettings(peer.model, NODES, REPLICAS, cache_dir=peer.cache)
    trial = TrialSettings(
        ArenaSettings(swarm, Link(), NetworkKind.LOOPBACK),
        PROMPT_IDS,
        Sampling(max_tokens=NUM_TOKENS, ignore_eos=True),
        num_kills=1,
        kill_after=KILL_AFTER,
    )
    result = await run_trial(context, trial, _Silent())
    (kill,) = result.kills
    return {
        "system": "shoal", "machines": NODES, "replicas": REPLICAS, "after_tokens": kill.after_tokens,
        "tokens": len(result.token_ids), "asked": NUM_TOKENS, "equal": result.matches_reference,
        "recovery_ms": kill.recovery_ms, "signal": signal.SIGKILL.name,
    }  # fmt: skip


def without_folders(said: str) -> str:
    """What a program said, with the names of its sources and not where they lie."""
    return re.sub(r"\S*/", "", said)


class _Silent:
    """Nobody is told."""

    def hashing(self, done_bytes: int, total_bytes: int) -> None: ...
    def nodes_are_up(self, nodes: list[LocalNode]) -> None: ...
    def token(self, token: object) -> None: ...
    def killed(self, peer: object, pid: int) -> None: ...
    def checking(self) -> None: ...
