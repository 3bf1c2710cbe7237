"""`shoal serve`: an OpenAI-compatible API on this machine, over a swarm that is up or over one of its own."""

import os
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shoal.cli.boundary import reporting_errors, run_coroutine
from shoal.cli.options import (
    ActivationsFlag,
    ActivationsOption,
    ChannelOption,
    DTypeOption,
    LanOption,
    LanUseOption,
    PrefillAheadFlag,
    SpeculateFlag,
    SpeculateOption,
    TrunkFormatOption,
)
from shoal.client.engine.engine_settings import PREFILL_AHEAD
from shoal.client.translate import _

if TYPE_CHECKING:
    from multiprocessing.context import ForkServerContext

    from shoal.cli.progress import ProgressBar
    from shoal.client import SwarmSettings
    from shoal.client.api.settings import ApiSettings
    from shoal.simulations.local import LocalSwarmSettings

DEMO_NAME = "shoal-demo"
"""What the embedded model is called."""

KEY_VARIABLE = "SHOAL_API_KEY"


def serve(
    model: Annotated[
        Path | None,
        typer.Option(
            help="Checkpoint directory, or NAME@ROOT of `shoal models ls`. Default: the embedded one.",
            envvar="SHOAL_MODEL",
        ),
    ] = None,
    join: Annotated[
        list[str] | None, typer.Option(help="A peer's address or an invite token; repeatable.", envvar="SHOAL_JOIN")
    ] = None,
    demo: Annotated[bool, typer.Option("--demo", help="Start a swarm of node processes here and serve it.")] = False,
    host: Annotated[str, typer.Option(help="Address to listen on; others than loopback need a key.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0: any free one.", min=0, max=65535)] = 8000,
    api_key_file: Annotated[
        Path | None, typer.Option(help=f"File with the key that requests must carry. Or the variable {KEY_VARIABLE}.")
    ] = None,
    allowed_host: Annotated[list[str] | None, typer.Option(help="A name that we may be called by; repeatable.")] = None,
    cors_origin: Annotated[
        list[str] | None, typer.Option(help="A web page's origin that may call, e.g. https://chat.example; repeatable.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="What the model is called. Default: its directory's name.")] = None,
    max_running: Annotated[int, typer.Option(help="Answers that grow at the same time.", min=1, max=256)] = 8,
    max_queue: Annotated[int, typer.Option(help="Requests that may wait; more get 429.", min=0, max=100_000)] = 64,
    dtype: Annotated[DTypeOption, typer.Option(help="Arithmetic.")] = DTypeOption.FP32,
    trunk_format: Annotated[
        TrunkFormatOption, typer.Option(help="How the trunk's linears are held; as-published keeps fp8 at one byte.")
    ] = TrunkFormatOption.DENSE,
    channel: Annotated[ChannelOption, typer.Option(help="How experts are reached.")] = ChannelOption.DIRECT,
    lan: LanUseOption = LanOption.MEMBERS,
    speculate: SpeculateFlag = SpeculateOption.OFF,
    activations: ActivationsFlag = ActivationsOption.EXACT,
    prefill_ahead: PrefillAheadFlag = PREFILL_AHEAD,
) -> None:
    """Serve an OpenAI-compatible API until SIGTERM or Ctrl-C."""
    with reporting_errors():
        from shoal.simulations.fork_server import start_fork_server

        context = start_fork_server() if demo else None  # it imports while we do
        from shoal.cli.model_words import model_directory
        from shoal.cli.progress import ProgressBar
        from shoal.cli.swarms import words_to_join
        from shoal.client.api.settings import ApiSettings
        from shoal.client.settings import SwarmSettings
        from shoal.protocol.errors import InvalidRequest
        from shoal.simulations.demo_model import MODEL_DIRECTORY
        from shoal.simulations.local import LocalSwarmSettings

        words_in = () if demo and not join else words_to_join(join)
        if (bool(words_in) or lan is LanOption.ANY) == demo:
            raise InvalidRequest(
                "no swarm is known; try `shoal join`, --demo to start one on this machine, or --lan any for an open one"
                " of this LAN, whose holders could read the prompts"
            )
        settings = ApiSettings(
            host=host, port=port, api_key=_api_key(api_key_file), allowed_hosts=tuple(allowed_host or ()),
            cors_origins=tuple(cors_origin or ()), max_running=max_running, max_queue=max_queue,
        )  # fmt: skip
        swarm = SwarmSettings(
            model=model_directory(model or MODEL_DIRECTORY), join=words_in, dtype=dtype.value, channel=channel.value,
            trunk_format=trunk_format.value, threads=1 if demo else 0, requires_coverage=False, lan=lan.value,
            max_streams=settings.max_running, max_waiting=settings.max_running, speculate=speculate.value,
            activations=activations.value, prefill_ahead=prefill_ahead,
        )  # fmt: skip
        with ProgressBar() as bar:
            if context is None:
                run_coroutine(lambda: _serve_found(model, swarm, settings, name, bar))
            else:
                nodes = LocalSwarmSettings(swarm.model)
                run_coroutine(lambda: _serve_demo(context, nodes, swarm, settings, name or _demo_name(model), bar))
        print(_("stopped"), file=sys.stderr)


def _demo_name(model: Path | None) -> str:
    return DEMO_NAME if model is None else model.resolve().name


async def _serve_found(
    model: Path | None, swarm: "SwarmSettings", settings: "ApiSettings", name: str | None, bar: "ProgressBar"
) -> None:
    """Serve the model that was named, or the token's, which may have to be fetched first."""
    from shoal.cli.token_model import Telling, client_model, on_stderr, shown_name

    found = await client_model(model, swarm.join, swarm.lan, Telling(bar, on_stderr))
    await _serve(replace(swarm, model=found), settings, name or shown_name(model, found, DEMO_NAME), bar)


async def _serve(swarm_settings: "SwarmSettings", settings: "ApiSettings", name: str, bar: "ProgressBar") -> None:
    from shoal.cli.tcp_words import warn_of_tcp
    from shoal.client import Swarm
    from shoal.client.api.app import create_app
    from shoal.client.api.assemble import make_services
    from shoal.client.api.metrics import Metrics
    from shoal.client.api.model import SwarmModel
    from shoal.client.api.sampling_defaults import load_sampling_defaults
    from shoal.client.api.serve import serve_until_stopped
    from shoal.client.api.services import Clocks

    metrics = Metrics()
    defaults = load_sampling_defaults(swarm_settings.model)
    joining = Swarm.join(swarm_settings, metrics.observe, partial(bar, _("hashing the model, once")))
    async with joining as swarm:
        clocks = Clocks(time.time, time.perf_counter, os.urandom)
        services = make_services(SwarmModel(swarm), name, defaults, settings, clocks, metrics)
        bar.stop()
        warn_of_tcp(swarm.peers(), swarm_settings.channel)
        app = create_app(services, settings)
        await serve_until_stopped(app, settings, services.shutdown, partial(_announce, name, settings))


async def _serve_demo(
    context: "ForkServerContext",
    nodes: "LocalSwarmSettings",
    swarm: "SwarmSettings",
    settings: "ApiSettings",
    name: str,
    bar: "ProgressBar",
) -> None:
    async with _demo_swarm(context, nodes, bar) as invite:
        await _serve(replace(swarm, join=(invite,)), settings, name, bar)


@asynccontextmanager
async def _demo_swarm(
    context: "ForkServerContext", nodes: "LocalSwarmSettings", bar: "ProgressBar"
) -> AsyncIterator[str]:
    """Four nodes on this machine, as `shoal demo` has them; gives their invite."""
    from shoal.experts.locations import default_cache_dir
    from shoal.experts.store import open_store
    from shoal.simulations.local import local_swarm

    hashing = partial(bar, _("hashing the model, once"))
    with await open_store(nodes.model, default_cache_dir(), hashing) as store:
        num_experts = store.spec.router.num_experts
    async with local_swarm(context, nodes, num_experts) as up:
        yield up[0].info.invite


def _api_key(path: Path | None) -> str | None:
    """The key's file, else its variable; never an argument, which every user of the machine can read."""
    if path is not None:
        return path.read_text(encoding="utf-8").strip()
    return os.environ.get(KEY_VARIABLE)


def _announce(name: str, settings: "ApiSettings", url: str) -> None:
    key = _("any key will do") if settings.api_key is None else _("with your key")
    print(_("serving {name} at {url}/v1 ({key})").format(name=name, url=url, key=key))
    print(_("try:    ") + f"curl {url}/v1/chat/completions -H 'Content-Type: application/json' \\")
    print('          -d \'{"messages": [{"role": "user", "content": "Tell a story about a frog."}]}\'')
    print(_("or:     ") + f"OPENAI_BASE_URL={url}/v1 OPENAI_API_KEY=none   " + _("and any OpenAI client"))
    print(_("stop:   Ctrl-C (finishes what it has begun)"), flush=True)
