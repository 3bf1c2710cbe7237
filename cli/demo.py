"""`shoal demo`: a swarm on this machine, a story, a death, and the same story."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shoal.cli.boundary import reporting_errors, run_coroutine
from shoal.cli.options import (
    ChannelOption,
    DTypeOption,
    SpeculateFlag,
    SpeculateOption,
    TrunkFormatOption,
    parse_ids,
    program,
)
from shoal.client.translate import _

if TYPE_CHECKING:
    from shoal.cli.progress import ProgressBar
    from shoal.client import Token
    from shoal.protocol.ids import PeerId
    from shoal.simulations.demo import DemoResult
    from shoal.simulations.local import LocalNode

DEFAULT_PROMPT = "Once upon a time there was a little frog"


def demo(
    model: Annotated[
        Path | None, typer.Option(help="Any DeepSeek-V3-shaped checkpoint. Default: the embedded story model.")
    ] = None,
    prompt: Annotated[
        str | None, typer.Option(help="The text to continue, greedily. Default: a story, drawn with a fixed seed.")
    ] = None,
    prompt_ids: Annotated[str | None, typer.Option(help="Token ids instead of text, e.g. 5,17,3.")] = None,
    nodes: Annotated[int, typer.Option(help="Node processes.", min=1, max=64)] = 4,
    replicas: Annotated[int, typer.Option(help="Holders of every expert.", min=1)] = 2,
    kill_after: Annotated[str, typer.Option(help="Kill a node after this many tokens, or never.")] = "16",
    max_tokens: Annotated[int, typer.Option(help="Most new tokens.", min=1)] = 96,
    dtype: Annotated[DTypeOption, typer.Option(help="Arithmetic.")] = DTypeOption.FP32,
    trunk_format: Annotated[
        TrunkFormatOption, typer.Option(help="How the trunk's linears are held; as-published keeps fp8 at one byte.")
    ] = TrunkFormatOption.DENSE,
    channel: Annotated[ChannelOption, typer.Option(help="How experts are reached.")] = ChannelOption.DIRECT,
    speculate: SpeculateFlag = SpeculateOption.OFF,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
) -> None:
    """Start a swarm on this machine, stream a story, kill a node in mid-answer, prove that nothing changed."""
    with reporting_errors():
        kill_token = _kill_token(kill_after, replicas)
        from shoal.simulations.fork_server import start_fork_server

        context = start_fork_server()  # it imports while we do
        from shoal.cli.progress import ProgressBar
        from shoal.client import Sampling
        from shoal.protocol.errors import InvalidRequest
        from shoal.simulations.demo import DemoSettings, run_demo
        from shoal.simulations.demo_model import MODEL_DIRECTORY
        from shoal.simulations.local import LocalSwarmSettings

        ids = parse_ids(prompt_ids)
        if prompt is not None and ids is not None:
            raise InvalidRequest("give either --prompt or --prompt-ids")
        is_default_story = model is None and prompt is None and ids is None
        sampling = Sampling(max_tokens=max_tokens)
        if is_default_story:
            # greedily, a small model repeats itself and may end too soon to be killed; the reference has the same seed
            sampling = replace(sampling, temperature=0.6, top_p=0.9, repetition_penalty=1.15, seed=2, ignore_eos=True)
        settings = DemoSettings(
            swarm=LocalSwarmSettings(model or MODEL_DIRECTORY, nodes, replicas),
            prompt=ids if ids is not None else prompt or DEFAULT_PROMPT,
            sampling=sampling,
            kill_after=kill_token,
            dtype=dtype.value,
            channel=channel.value,
            trunk_format=trunk_format.value,
            speculate=speculate.value,
        )
        bar = ProgressBar()
        narrator = Quiet() if as_json else Storyteller(settings.prompt, bar)

        async def show() -> None:
            result = await run_demo(context, settings, narrator)
            print(json.dumps(result.as_json())) if as_json else _conclude(result)
            if not result.matches_reference:
                raise SystemExit(1)

        with bar:
            run_coroutine(show)


def _kill_token(words: str, replicas: int) -> int | None:
    if words == "never":
        return None
    if not words.isdigit() or int(words) < 1:
        raise typer.BadParameter("--kill-after is a number of tokens, or never")
    if replicas < 2:
        raise typer.BadParameter("with one replica a death leaves a gap: use --replicas 2 or --kill-after never")
    return int(words)


class Quiet:
    """Says nothing: for --json."""

    def hashing(self, done_bytes: int, total_bytes: int) -> None: ...
    def nodes_are_up(self, nodes: "list[LocalNode]") -> None: ...
    def token(self, token: "Token") -> None: ...
    def killed(self, peer: "PeerId", pid: int) -> None: ...
    def checking(self) -> None: ...


class Storyteller(Quiet):
    """Tells the demonstration to a terminal."""

    def __init__(self, prompt: object, bar: "ProgressBar") -> None:
        self._prompt = prompt if isinstance(prompt, str) else ""
        self._bar = bar

    def hashing(self, done_bytes: int, total_bytes: int) -> None:
        self._bar(_("hashing the model, once"), done_bytes, total_bytes)

    def nodes_are_up(self, nodes: "list[LocalNode]") -> None:
        self._bar.stop()
        print(_("A small story model, a real network path: every expert lives in another process, twice.") + "\n")
        for node in nodes:
            words = _("  node {peer}  pid {pid:<7}  {experts} experts")
            print(words.format(peer=node.info.peer[-8:], pid=node.pid, experts=node.info.num_experts))
        print(flush=True)

    def token(self, token: "Token") -> None:
        prompt = self._prompt if token.index == 0 else ""
        print(prompt + token.text, end="", flush=True)

    def killed(self, peer: "PeerId", pid: int) -> None:
        words = _("kill -9 {pid}: node {peer} died with our request").format(pid=pid, peer=peer[-8:])
        print(f" [{words}] ", end="", flush=True)

    def checking(self) -> None:
        print("\n\n" + _("Computing the same answer in this process alone …"), flush=True)


def _conclude(result: "DemoResult") -> None:
    answer = result.answer
    equal, differs = _("the text is equal, token for token."), _("THE TEXT DIFFERS. This is a bug.")
    print(equal if result.matches_reference else differs)
    rate = answer.generation.tokens_per_s
    speed = _("  {tokens} tokens at {rate:.1f} tokens/s from {holders} holders")
    print("\n" + speed.format(tokens=len(answer.token_ids), rate=rate, holders=answer.holders_used))
    exchange = _("  exchange with a holder: {p50_ms:.2f} ms median, {p99_ms:.2f} ms p99")
    print(exchange.format(p50_ms=result.exchange_ms_p50, p99_ms=result.exchange_ms_p99))
    if result.recovery_ms is not None:
        died = _("  node {peer} died; fail-over cost {recovery_ms:.0f} ms and no token")
        print(died.format(peer=(result.killed_peer or "")[-8:], recovery_ms=result.recovery_ms))
    print("\n" + _("Next:"))
    print(f"  {program()} demo --nodes 6 --replicas 3 --channel libp2p   " + _("another swarm, through libp2p"))
    print(f"  {program()} node --experts all                             " + _("hold experts; prints how others join"))
    print(f"  {program()} run 'Once upon a time'                         " + _("use a swarm that is up"))
    sys.stdout.flush()
