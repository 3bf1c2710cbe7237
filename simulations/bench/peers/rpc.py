"""llama.cpp's RPC and our swarm at the same work. `make bench-peers` runs it.

The small DeepSeek-V3 in fp32, in one process, then on 2, 4 and 8 machines: llama.cpp's layers in equal parts on RPC
servers over plain TCP, our experts in equal parts on holders over TLS 1.3, every process one thread. Machines are
network namespaces joined by the relay of `simulations/wan` (root), and this machine's loopback; both systems' processes
share them and take turns within a round. Everything runs in a network namespace of its own, whose TCP is reno: this
kernel's default paces. At last a machine is killed in the middle of an answer of each.
Run: python -m shoal.simulations.bench.peers.rpc
"""

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.context import ForkServerContext
from pathlib import Path
from time import perf_counter

from shoal.client.engine.generate import Engine
from shoal.client.speculation.choice import Speculation, choose_drafter
from shoal.protocol.errors import InvalidRequest, ShoalError
from shoal.simulations.arena import Arena, ArenaSettings, NetworkKind, num_experts_of, open_arena
from shoal.simulations.bench.machine import congestion_control, describe_machine, git_commit
from shoal.simulations.bench.peers.environments import NotAvailable, environment
from shoal.simulations.bench.peers.members import HERE
from shoal.simulations.bench.peers.program import Program
from shoal.simulations.bench.peers.rpc_kill import kill_ours, kill_theirs
from shoal.simulations.bench.peers.rpc_peer import Peer, open_peer
from shoal.simulations.bench.peers.rpc_servers import RpcServer, memory_bytes, rpc_servers
from shoal.simulations.bench.peers.rpc_sides import Answers, alone, num_equal, ours, theirs
from shoal.simulations.bench.peers.rpc_table import row_of, table
from shoal.simulations.fork_server import start_fork_server
from shoal.simulations.local import LocalSwarmSettings
from shoal.simulations.wan.link import Link
from shoal.simulations.wan.namespace import bring_up, leave_network, set_congestion_control, why_no_namespaces

OURS, THEIRS, DRAFTS = "shoal", "llama.cpp", "shoal, n-gram drafts"
TRUNK_FORMAT = "as-published"
CONGESTION_CONTROL = "reno"
PARTS = ("alone", "machines", "killed")
"""What there is to measure."""

NETWORKS = (NetworkKind.LOOPBACK.value, NetworkKind.NAMESPACES.value)

Row = dict[str, object]
Report = Callable[[str], None]
"""Told, line by line, what is done."""


@dataclass(frozen=True, slots=True)
class RpcSettings:
    """What is measured."""

    machines: Sequence[int] = (2, 4, 8)
    """8: a layer and a bit each of llama.cpp's, and so about as many hops as we have layers with experts."""
    rtts_ms: Sequence[float] = (0, 5, 20)
    """Between the client's machine and every other, and between those. 0: the relay's own cost."""
    streams: Sequence[int] = (1, 8)
    networks: Sequence[str] = NETWORKS
    tokens: int = 20
    rounds: int = 3
    parts: Sequence[str] = PARTS
    minutes: float = 10.0
    """After which no cell begins: it is left out, and told."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One column of a table: where, and how many answers at a time."""

    network: str
    rtt_ms: float
    streams: int


@dataclass(frozen=True, slots=True)
class Watch:
    """Since when, how long at most, and who is told."""

    began: float
    """By `perf_counter`."""
    minutes: float
    report: Report

    @property
    def seconds(self) -> float:
        return perf_counter() - self.began

    @property
    def is_over(self) -> bool:
        return self.seconds > 60 * self.minutes


async def bench_rpc(context: ForkServerContext, environments: Path, settings: RpcSettings, report: Report) -> Row:
    """All of it; one JSON object.

    Raises:
        NotAvailable: llama.cpp or the model can not be had here. ShoalError: whatever our nodes and client raise.
    """
    watch = Watch(perf_counter(), settings.minutes, report)
    rows, memory, killed = list[Row](), list[Row](), list[Row]()
    with tempfile.TemporaryDirectory() as name:
        peer = open_peer(environments, Path(name))
        if "alone" in settings.parts:
            rows += await _one_process(peer, settings, watch)
        if "killed" in settings.parts:
            killed = [await kill_theirs(peer), await kill_ours(context, peer)]
        for machines in settings.machines if "machines" in settings.parts else ():
            for network in map(NetworkKind, settings.networks):
                if watch.is_over:
                    report(f"no time for {machines} machines, {network.value}")
                    continue
                measured = await _machines(context, peer, settings, machines, network, watch)
                rows += measured[0]
                memory.append(measured[1])
    return {
        "machine": describe_machine(),
        "commit": git_commit(),
        "congestion_control": congestion_control(),
        "tokens": settings.tokens,
        "rounds": settings.rounds,
        "seconds": watch.seconds,
        "rows": rows,
        "memory": memory,
        "killed": killed,
    }


async def _one_process(peer: Peer, settings: RpcSettings, watch: Watch) -> list[Row]:
    """Both systems without a network."""
    here = environment(HERE, peer.folder, peer.folder)
    cell = Cell("one process", 0, 1)
    taken: dict[str, list[Answers]] = {THEIRS: [], OURS: []}
    with peer.program("alone") as llama, Program(
        here, "decode_ours", str(peer.model), TRUNK_FORMAT, folder=peer.folder
    ) as own:  # fmt: skip
        for number in range(settings.rounds + 1):
            answers = {
                THEIRS: await theirs(llama, settings.tokens, 1),
                OURS: await alone(own, settings.tokens),
            }
            if number:  # the first warms up
                for name, each in answers.items():
                    taken[name].append(each)
    return _rows(cell, 1, taken, watch)


async def _machines(
    context: ForkServerContext, peer: Peer, settings: RpcSettings, machines: int, network: NetworkKind, watch: Watch
) -> tuple[list[Row], Row]:
    """The rows of one number of machines on one network, and what memory each machine needed."""
    swarm = LocalSwarmSettings(peer.model, machines, replicas=1, cache_dir=peer.cache)
    has_links = network is NetworkKind.NAMESPACES
    arena_settings = ArenaSettings(
        swarm, Link(), network, trunk_format=TRUNK_FORMAT, congestion_control=CONGESTION_CONTROL if has_links else "",
    )  # fmt: skip
    folder = peer.folder / f"{network.value}{machines}"
    folder.mkdir()
    async with open_arena(context, arena_settings, await num_experts_of(swarm, None), lambda _: None) as arena:
        hosts = arena.network.hosts[:machines] if arena.network else machines
        async with rpc_servers(peer.environment, folder, hosts) as servers:
            with peer.program(f"client-{folder.name}", servers) as llama:
                rows = await _cells(arena, llama, settings, machines, watch)
                return rows, _memory(arena, servers, network)


async def _cells(arena: Arena, llama: Program, settings: RpcSettings, machines: int, watch: Watch) -> list[Row]:
    shared = arena.swarm.engine
    drafting = Engine(
        shared.trunk, shared.routed_experts, shared.tokenizer, drafter=choose_drafter(Speculation.NGRAM)
    )  # fmt: skip
    rows: list[Row] = []
    try:
        for rtt_ms in settings.rtts_ms if arena.network else (0.0,):
            _set_links(arena, rtt_ms)
            for streams in settings.streams:
                cell = Cell(arena.settings.network.value, rtt_ms, streams)
                if watch.is_over:
                    watch.report(f"no time for {cell} on {machines} machines")
                    continue
                engines = {OURS: shared} | ({DRAFTS: drafting} if streams == 1 else {})
                taken = await _cell(llama, engines, settings, streams)
                rows += _rows(cell, machines, taken, watch)
    finally:
        await drafting.aclose()
    return rows


def _set_links(arena: Arena, rtt_ms: float) -> None:
    if arena.network is not None:
        for host in arena.network.hosts:
            arena.network.set_link(host.index, Link(rtt_ms))


async def _cell(
    llama: Program, engines: Mapping[str, Engine], settings: RpcSettings, streams: int
) -> dict[str, list[Answers]]:
    """One unmeasured round, then the measured ones."""
    taken: dict[str, list[Answers]] = {name: [] for name in (THEIRS, *engines)}
    for number in range(settings.rounds + 1):
        answers = {THEIRS: await theirs(llama, settings.tokens, streams)}
        for name, engine in engines.items():
            answers[name] = await ours(engine, settings.tokens, streams)
        if number:
            for name, each in answers.items():
                taken[name].append(each)
    return taken


def _rows(cell: Cell, machines: int, taken: Mapping[str, Sequence[Answers]], watch: Watch) -> list[Row]:
    """A row a system. `ratio`: its time by llama.cpp's of the same round."""
    equal, all_streams = num_equal([each for answers in taken.values() for each in answers])
    rows = []
    for name, answers in taken.items():
        times = sorted(each.token_ms for each in answers)
        ratios = sorted(own.token_ms / their.token_ms for own, their in zip(answers, taken[THEIRS], strict=True))
        rows.append(
            {
                "system": name, "network": cell.network, "machines": machines, "rtt_ms": cell.rtt_ms,
                "streams": cell.streams, "token_ms": statistics.median(times), "token_ms_range": [times[0], times[-1]],
                "tokens_per_s": 1000 * cell.streams / statistics.median(times),
                "ratio": statistics.median(ratios), "ratio_range": [ratios[0], ratios[-1]],
                "equal_streams": equal, "all_streams": all_streams,
            }
        )  # fmt: skip
        watch.report(row_of(rows[-1]))
    return rows


def _memory(arena: Arena, servers: Sequence[RpcServer], network: NetworkKind) -> Row:
    """Bytes, by machine: of llama.cpp's servers with and without their layers, of our nodes."""
    return {
        "network": network.value,
        "machines": len(servers),
        "their_model_bytes": [server.model_bytes() for server in servers],
        "their_process_bytes": [memory_bytes(server.pid) for server in servers],
        "our_process_bytes": [memory_bytes(node.pid) for node in arena.nodes],
    }


def main() -> int:
    """Measure, or say why this machine can not."""
    default = RpcSettings()
    parser = argparse.ArgumentParser(description="llama.cpp's RPC beside our swarm. Needs root, for namespaces.")
    parser.add_argument("--environments", type=Path, default=Path(".venv-peers"), help="where the peers are installed")
    parser.add_argument("--rounds", type=int, default=default.rounds)
    parser.add_argument("--tokens", type=int, default=default.tokens, help="of every answer")
    parser.add_argument("--machines", type=int, action="append", help="repeatable; default: 2 4 8")
    parser.add_argument("--rtt", type=float, action="append", help="milliseconds; repeatable; default: 0 5 20")
    parser.add_argument("--streams", type=int, action="append", help="answers at a time; repeatable; default: 1 8")
    parser.add_argument("--network", choices=NETWORKS, action="append", help="repeatable; default: both")
    parser.add_argument("--minutes", type=float, default=default.minutes, help="after which no cell begins")
    parser.add_argument("--part", choices=PARTS, action="append", help="repeatable; default: all")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    if reason := why_no_namespaces():
        print(f"the comparison with llama.cpp's RPC is skipped, no network namespaces: {reason}", file=sys.stderr)
        return 0
    settings = RpcSettings(
        given.machines or default.machines,
        given.rtt or default.rtts_ms,
        given.streams or default.streams,
        given.network or default.networks,
        tokens=given.tokens,
        rounds=given.rounds,
        parts=given.part or default.parts,
        minutes=given.minutes,
    )
    environments = given.environments.resolve()
    try:
        with tempfile.TemporaryDirectory() as name:
            open_peer(environments, Path(name))  # what is downloaded is so before the network is left
        _own_network()
        result = asyncio.run(bench_rpc(start_fork_server(), environments, settings, _report))
    except (NotAvailable, ShoalError) as error:
        print(f"bench-peers: {error}", file=sys.stderr)
        return 1
    print(json.dumps(result) if given.json else table(result))
    return 0


def _report(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _own_network() -> None:
    """A network namespace for this process and what it starts: nothing but loopback, with our congestion control.

    Raises:
        InvalidRequest: not allowed.
    """
    try:
        leave_network()
        bring_up("lo")
        set_congestion_control(CONGESTION_CONTROL)
    except OSError as error:
        raise InvalidRequest(f"no network namespace: {error}") from error


if __name__ == "__main__":
    sys.exit(main())
