"""What an expert costs that a node reads from its disk: asked over TLS, beside one in memory, at DeepSeek-V3's size.

A real `shoal node --ram --cold` over a store of pieces on this machine's disk (44 MB each, whole: no holes). Three
kinds of request take turns: for an expert in memory, for one that only the system's page cache has, and for one that is
on the disk alone (its pages are given back before: `posix_fadvise`). Beside them, what the node's record announces
(`read_ms`). Linux.
Run: python -m shoal.simulations.bench.cold_experts
"""

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from shoal.experts.pieces.model import PieceModel
from shoal.experts.pieces.shelf import Shelf
from shoal.node.weights.pulling import Wish, planned
from shoal.protocol.control import GetPeers, Peer, PeerRole, Peers
from shoal.protocol.identity import Identity
from shoal.protocol.ids import ExpertId, PeerId
from shoal.protocol.messages import Dispatch, DType, Rounding, WeightFormat
from shoal.protocol.net.channel import Channel
from shoal.protocol.net.control_socket import ask
from shoal.protocol.net.direct import DirectConnector
from shoal.protocol.tensors import dispatch_body
from shoal.simulations.bench.machine import describe_machine, git_commit
from shoal.simulations.bench.start import LAYER, NAME, STOP_TIMEOUT_S, TIMEOUT_MS, bench_environment, bench_model
from shoal.simulations.scratch import scratch_directory

NUM_RESIDENT = 4

RAM, COLD = "400MB", "10GB"
"""Room for the residents and for one that was read lately; more than all pieces have."""


@dataclass(slots=True)
class ColdTimes:
    """Milliseconds of each request, and what the node said reading takes, after each that was read from disk."""

    resident: list[float] = field(default_factory=list)
    cached: list[float] = field(default_factory=list)
    disk: list[float] = field(default_factory=list)
    announced: list[float] = field(default_factory=list)


def bench_cold(num_experts: int, rounds: int) -> ColdTimes:
    """Measure. num_experts: in the store, 44 MB of disk each, at least seven.

    Raises:
        RuntimeError: the node did not start, with what it said.
    """
    with scratch_directory() as scratch:
        environment, model = bench_environment(scratch), bench_model(scratch / "model", num_experts)
        store = scratch / "store"
        asyncio.run(_pull(model, store))
        os.sync()
        return _with_node(environment, Shelf(store), rounds)


async def _pull(model: Path, store: Path) -> None:
    async with planned(Wish("bench", (str(model),)), Shelf(store)) as pulled:
        await pulled.run(lambda done, total: None)


def _with_node(environment: Mapping[str, str], shelf: Shelf, rounds: int) -> ColdTimes:
    folder = shelf.find("bench").directory
    words = ["--open", "--yes", "--no-lan", "--model", str(folder), "--experts", f"{LAYER}:0-{NUM_RESIDENT - 1}"]
    words += ["--ram", RAM, "--cold", COLD, "--name", NAME]
    process = subprocess.Popen(
        [sys.executable, "-m", "shoal.cli", "node", *words], env=dict(environment), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        if process.stdout is None or not process.stdout.readline():
            raise RuntimeError(f"the node did not start: {process.communicate(timeout=STOP_TIMEOUT_S)[1][-500:]}")
        return asyncio.run(_measure(Path(environment["XDG_RUNTIME_DIR"]) / "shoal", folder, rounds))
    finally:
        process.terminate()
        try:
            process.communicate(timeout=STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()


async def _measure(control: Path, folder: Path, rounds: int) -> ColdTimes:
    times = ColdTimes()
    me = await _myself(control)
    connector = DirectConnector(Identity.from_seed(b"bench cold".ljust(32)), os.urandom)
    with PieceModel.open_folder(folder) as model:
        cold = list(range(NUM_RESIDENT, model.spec.router.num_experts))
        try:
            channel = await connector.connect(PeerId(me.peer), me.addresses, TIMEOUT_MS / 1000)
            for number in range(rounds):
                times.resident.append(await _request(channel, model, number % NUM_RESIDENT))
                from_disk, cached = cold[2 * number % len(cold)], cold[(2 * number + 1) % len(cold)]
                _warm(model, cached)
                times.cached.append(await _request(channel, model, cached))
                _drop(model, from_disk)
                times.disk.append(await _request(channel, model, from_disk))
                times.announced.append(float((await _myself(control)).read_ms))
        finally:
            await connector.aclose()
    return times


async def _myself(control: Path) -> Peer:
    reply = await ask(control, NAME, GetPeers())
    if not isinstance(reply, Peers):
        raise RuntimeError(f"the node does not say where it is: {reply}")
    return next(peer for peer in reply.peers if peer.role is PeerRole.SELF)


async def _request(channel: Channel, model: PieceModel, expert: int) -> float:
    """Milliseconds for one row through one expert."""
    hidden = model.spec.expert.hidden
    message = Dispatch(
        model.manifest.root, LAYER, Rounding.BF16, WeightFormat.FP8_BLOCK, DType.BF16, 1, hidden, (expert,), (1,),
        TIMEOUT_MS,
    )  # fmt: skip
    body = dispatch_body(
        torch.ones((1, hidden), dtype=torch.bfloat16), torch.zeros(1, dtype=torch.int64), torch.ones(1)
    )
    begun_s = time.perf_counter()
    await channel.request(message, [body])
    return 1000 * (time.perf_counter() - begun_s)


def _piece(model: PieceModel, expert: int) -> Path:
    return model.shelf.root / "pieces" / model.manifest.expert_digest(LAYER, ExpertId(expert)).hex()


def _drop(model: PieceModel, expert: int) -> None:
    """Its pages go from the system's cache; the file was synced when it was stored."""
    descriptor = os.open(_piece(model, expert), os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def _warm(model: PieceModel, expert: int) -> None:
    _piece(model, expert).read_bytes()


def table(times: ColdTimes, num_experts: int) -> str:
    """Medians and ranges, for people."""
    machine = describe_machine()
    resident = statistics.median(times.resident)
    lines = [
        f"{machine['cpu']}, {machine['cores']} cores, {machine['kernel']}, commit {git_commit()};"
        f" {num_experts} experts of 44 MB, {len(times.disk)} rounds: median (range)"
    ]
    rows = {"in memory": times.resident, "in the page cache": times.cached, "on disk alone": times.disk}
    for name, found in rows.items():
        lines.append(f"an expert {name:20}{_middle(found):>32} ms  {statistics.median(found) / resident:7.1f} x")
    return "\n".join([*lines, f"announced read_ms             {_middle(times.announced):>32} ms"])


def _middle(values: list[float]) -> str:
    return f"{statistics.median(values):.1f} ({min(values):.1f}-{max(values):.1f})"


def main() -> int:
    """Run it and print the table."""
    parser = argparse.ArgumentParser(description="An expert in memory, in the page cache and on disk, over TLS.")
    parser.add_argument("--experts", type=int, default=24, help="in the store, 44 MB each")
    parser.add_argument("--rounds", type=int, default=20)
    given = parser.parse_args()
    if given.experts < NUM_RESIDENT + 3:
        parser.error(f"at least {NUM_RESIDENT + 3} experts: {NUM_RESIDENT} are in memory")
    print(table(bench_cold(given.experts, given.rounds), given.experts))
    return 0


if __name__ == "__main__":
    sys.exit(main())
