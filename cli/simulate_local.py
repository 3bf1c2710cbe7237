"""`shoal simulate --local N`: real processes on a slow, lossy, deadly network, and the proof that nothing changed."""

import asyncio
import json
import signal
import sys
from collections.abc import Coroutine
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shoal.cli.boundary import reporting_errors, run_coroutine
from shoal.cli.options import ChannelOption
from shoal.client.translate import _

if TYPE_CHECKING:
    from shoal.cli.progress import ProgressBar
    from shoal.client import Token
    from shoal.protocol.ids import PeerId
    from shoal.simulations.local import LocalNode
    from shoal.simulations.trial import TrialResult, TrialSettings

SIGTERM_STATUS = 143
"""128 + SIGTERM, as shells have it."""

DEFAULT_PROMPT = "Once upon a time there was a little frog"
DEFAULT_IDS = (1, 2, 3, 5, 7)
"""For a model of which nothing is known: every vocabulary has these."""

KILL_AT = 6
"""Nodes die when this part of the answer's tokens has come: enough to know the round trips by then."""


@dataclass(frozen=True, slots=True)
class LocalWords:
    """What the flags of `shoal simulate --local` said."""

    nodes: int
    replicas: int
    rtt_ms: float
    loss_pct: float
    rate_mbit: float | None
    churn: float
    kill: str
    tokens: int
    model: Path | None
    channel: str
    seed: int
    use_namespaces: bool
    as_json: bool


def local(
    nodes: Annotated[int, typer.Argument(help="Node processes.", min=1, max=64)],
    replicas: Annotated[int, typer.Option(help="Holders of every expert.", min=1)] = 2,
    rtt: Annotated[float, typer.Option(help="Round trip between any two, in milliseconds.", min=0)] = 0.0,
    loss: Annotated[float, typer.Option(help="Packets lost each way, in percent.", min=0, max=90)] = 0.0,
    rate: Annotated[
        float | None, typer.Option(help="Mbit/s of every machine, each direction. Default: no limit.", min=0.01)
    ] = None,
    churn: Annotated[float, typer.Option(help="Deaths per node and hour; each is replaced at once.", min=0)] = 0.0,
    kill: Annotated[str, typer.Option(help="Nodes that die at once in mid-answer: a count, or a share (0.3).")] = "0",
    tokens: Annotated[int, typer.Option(help="Tokens of the answer.", min=1)] = 96,
    model: Annotated[
        Path | None, typer.Option(help="Checkpoint directory. Default: the embedded demonstration model.")
    ] = None,
    channel: Annotated[ChannelOption, typer.Option(help="How experts are reached.")] = ChannelOption.DIRECT,
    seed: Annotated[int, typer.Option(help="Of victims, losses and the answer.", min=0)] = 0,
    namespaces: Annotated[
        bool, typer.Option(help="Use network namespaces where root allows; otherwise delay in the client's channels.")
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON; docs/schemas says which.")] = False,
) -> None:
    """Stream one answer through real processes on a slow, lossy, deadly network of this machine, and check it."""
    words = LocalWords(
        nodes, replicas, rtt, loss, rate, churn, kill, tokens, model, channel.value, seed, namespaces, as_json
    )
    with reporting_errors():
        from shoal.simulations.fork_server import start_fork_server

        context = start_fork_server()  # it imports while we do
        from shoal.cli.progress import ProgressBar
        from shoal.simulations.trial import run_trial

        settings, reason = _settings(words)
        bar = ProgressBar()
        narrator = Quiet() if words.as_json else Teller(bar)
        narrator.network(settings.arena.network.value, reason)

        async def show() -> None:
            result = await run_trial(context, settings, narrator)
            print(json.dumps(asdict(result)) if words.as_json else "\n".join(_lines(result)))
            if not result.matches_reference:
                raise SystemExit(1)

        with bar:
            run_coroutine(lambda: until_sigterm(show()))


async def until_sigterm(work: Coroutine[None, None, None]) -> None:
    """Run `work`; SIGTERM cancels it, lets it clean up, and is the exit status."""
    loop, task = asyncio.get_running_loop(), asyncio.ensure_future(work)
    is_told = asyncio.Event()

    def on_signal() -> None:
        is_told.set()
        task.cancel()

    loop.add_signal_handler(signal.SIGTERM, on_signal)
    try:
        await task
    except asyncio.CancelledError:
        if is_told.is_set():
            raise SystemExit(SIGTERM_STATUS) from None
        raise
    finally:
        loop.remove_signal_handler(signal.SIGTERM)


def _settings(words: LocalWords) -> "tuple[TrialSettings, str]":
    from shoal.client import Sampling
    from shoal.simulations.arena import ArenaSettings
    from shoal.simulations.churn import count_of
    from shoal.simulations.demo_model import MODEL_DIRECTORY
    from shoal.simulations.local import LocalSwarmSettings
    from shoal.simulations.trial import TrialSettings, network_for
    from shoal.simulations.wan.link import Link

    rate = None if words.rate_mbit is None else words.rate_mbit * 1e6 / 8
    link = Link(words.rtt_ms, words.loss_pct / 100, rate)
    network, reason = network_for(link, words.use_namespaces)
    swarm = LocalSwarmSettings(words.model or MODEL_DIRECTORY, words.nodes, words.replicas)
    sampling = Sampling(max_tokens=words.tokens, ignore_eos=True)
    if words.model is None:
        sampling = replace(sampling, temperature=0.6, top_p=0.9, repetition_penalty=1.15, seed=words.seed)
    num_kills = count_of(words.kill, words.nodes)
    kill_after = max(words.tokens // KILL_AT, 1)
    if num_kills and words.tokens <= kill_after:
        raise typer.BadParameter("an answer of one token is over before a node can die")
    arena = ArenaSettings(swarm, link, network, words.seed, channel=words.channel)
    prompt = DEFAULT_PROMPT if words.model is None else list(DEFAULT_IDS)
    return TrialSettings(arena, prompt, sampling, num_kills, kill_after, words.churn), reason


class Quiet:
    """Says nothing on the output: for --json. That the network is not the best is said on stderr all the same."""

    def network(self, kind: str, reason: str) -> None:
        if reason:
            print(_("network: {kind} ({reason})").format(kind=kind, reason=reason), file=sys.stderr)

    def hashing(self, done_bytes: int, total_bytes: int) -> None: ...
    def nodes_are_up(self, nodes: "list[LocalNode]") -> None: ...
    def token(self, token: "Token") -> None: ...
    def killed(self, peer: "PeerId", pid: int) -> None: ...
    def checking(self) -> None: ...


class Teller(Quiet):
    """Tells a terminal."""

    def __init__(self, bar: "ProgressBar") -> None:
        self._bar = bar

    def network(self, kind: str, reason: str) -> None:
        words = _("network: {kind} ({reason})") if reason else _("network: {kind}")
        print(words.format(kind=kind, reason=reason), flush=True)

    def hashing(self, done_bytes: int, total_bytes: int) -> None:
        self._bar(_("hashing the model, once"), done_bytes, total_bytes)

    def nodes_are_up(self, nodes: "list[LocalNode]") -> None:
        self._bar.stop()
        for node in nodes:
            words = _("  node {peer}  pid {pid:<7}  {experts} experts")
            print(words.format(peer=node.info.peer[-8:], pid=node.pid, experts=node.info.num_experts), flush=True)

    def token(self, token: "Token") -> None:
        print(token.text or f" {token.id}", end="", flush=True)

    def killed(self, peer: "PeerId", pid: int) -> None:
        words = _("kill -9 {pid}: node {peer}").format(pid=pid, peer=peer[-8:])
        print(f" [{words}] ", end="", flush=True)

    def checking(self) -> None:
        print("\n\n" + _("Computing the same answer in this process alone …"), flush=True)


def _lines(result: "TrialResult") -> list[str]:
    equal, differs = _("the text is equal, token for token."), _("THE TEXT DIFFERS. This is a bug.")
    speed = _("  {tokens} tokens at {rate:.1f} tokens/s from {holders} holders")
    exchange = _("  exchange with a holder: {p50_ms:.2f} ms median, {p99_ms:.2f} ms p99")
    token = _("  a token: {p50_ms:.0f} ms median, {p99_ms:.0f} ms p99")
    died = _("  node {peer} died; fail-over cost {recovery_ms:.0f} ms and no token")
    idle = _("  node {peer} died; no request of ours met it")
    return [
        equal if result.matches_reference else differs,
        speed.format(tokens=len(result.token_ids), rate=result.tokens_per_s, holders=result.holders_used),
        exchange.format(p50_ms=result.exchange_ms_p50, p99_ms=result.exchange_ms_p99),
        token.format(p50_ms=result.token_ms_p50, p99_ms=result.token_ms_p99),
        *(
            (idle if kill.recovery_ms is None else died).format(peer=kill.peer[-8:], recovery_ms=kill.recovery_ms)
            for kill in result.kills
        ),
    ]
