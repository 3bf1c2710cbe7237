"""`shoal run`: a prompt through a swarm that is already up."""

import json
from contextlib import aclosing
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
    parse_ids,
)
from shoal.client.engine.engine_settings import PREFILL_AHEAD
from shoal.client.translate import _

if TYPE_CHECKING:
    from shoal.client import Sampling, Swarm, SwarmSettings


def run(
    prompt: Annotated[str | None, typer.Argument(help="The text to continue.")] = None,
    model: Annotated[
        Path | None,
        typer.Option(help="Checkpoint directory, or NAME@ROOT of `shoal models ls`. Default: the embedded one."),
    ] = None,
    join: Annotated[list[str] | None, typer.Option(help="A peer's address or an invite token; repeatable.")] = None,
    prompt_ids: Annotated[str | None, typer.Option(help="Token ids instead of text, e.g. 5,17,3.")] = None,
    chat: Annotated[bool, typer.Option(help="Put the prompt into the model's chat template.")] = False,
    max_tokens: Annotated[int, typer.Option(help="Most new tokens.", min=1)] = 128,
    temperature: Annotated[float, typer.Option(help="0: greedy.", min=0)] = 0.0,
    top_p: Annotated[float, typer.Option(min=0, max=1)] = 1.0,
    top_k: Annotated[int, typer.Option(help="0: all.", min=0)] = 0,
    repetition_penalty: Annotated[float, typer.Option(min=0.01)] = 1.0,
    seed: Annotated[int | None, typer.Option()] = None,
    stop: Annotated[list[str] | None, typer.Option(help="Stop at this text; repeatable.")] = None,
    dtype: Annotated[DTypeOption, typer.Option(help="Arithmetic.")] = DTypeOption.FP32,
    trunk_format: Annotated[
        TrunkFormatOption, typer.Option(help="How the trunk's linears are held; as-published keeps fp8 at one byte.")
    ] = TrunkFormatOption.DENSE,
    channel: Annotated[ChannelOption, typer.Option(help="How experts are reached.")] = ChannelOption.DIRECT,
    lan: LanUseOption = LanOption.MEMBERS,
    speculate: SpeculateFlag = SpeculateOption.OFF,
    activations: ActivationsFlag = ActivationsOption.EXACT,
    prefill_ahead: PrefillAheadFlag = PREFILL_AHEAD,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Continue a prompt with a swarm that is already up."""
    with reporting_errors():
        from shoal.cli.swarms import words_to_join
        from shoal.client.engine.sampler import Sampling
        from shoal.client.settings import SwarmSettings
        from shoal.protocol.errors import InvalidRequest
        from shoal.simulations.demo_model import MODEL_DIRECTORY

        ids = parse_ids(prompt_ids)
        if (prompt is None) == (ids is None):
            raise InvalidRequest("give either a prompt or --prompt-ids")
        words_in = words_to_join(join)
        if not words_in and lan is not LanOption.ANY:
            raise InvalidRequest(
                "no swarm is known; try `shoal join`, or `shoal demo`, which needs none, or --lan any for an open swarm"
                " of this LAN, whose holders could read the prompt"
            )
        sampling = Sampling(
            temperature=temperature, top_p=top_p, top_k=top_k, repetition_penalty=repetition_penalty,
            seed=seed, max_tokens=max_tokens, stop=tuple(stop or ()),
        )  # fmt: skip
        settings = SwarmSettings(
            model=model or MODEL_DIRECTORY, join=words_in, dtype=dtype.value, channel=channel.value,
            trunk_format=trunk_format.value, lan=lan.value, speculate=speculate.value, activations=activations.value,
            prefill_ahead=prefill_ahead,
        )  # fmt: skip
        words = ids if ids is not None else prompt or ""
        run_coroutine(lambda: _run(model, settings, words, chat, sampling, as_json))


async def _run(
    model: Path | None,
    settings: "SwarmSettings",
    prompt: "str | list[int]",
    chat: bool,
    sampling: "Sampling",
    as_json: bool,
) -> None:
    from shoal.cli.progress import ProgressBar
    from shoal.cli.tcp_words import warn_of_tcp
    from shoal.cli.token_model import Telling, client_model, on_stderr
    from shoal.client import Swarm

    with ProgressBar() as bar:
        found = await client_model(model, settings.join, settings.lan, Telling(bar, on_stderr))
        settings = replace(settings, model=found)
        joining = Swarm.join(settings, progress=partial(bar, _("hashing the model, once")))
        async with joining as swarm:
            bar.stop()
            warn_of_tcp(swarm.peers(), settings.channel)
            await _answer(swarm, prompt, chat, sampling, as_json)


async def _answer(swarm: "Swarm", prompt: "str | list[int]", chat: bool, sampling: "Sampling", as_json: bool) -> None:
    is_chat = chat and isinstance(prompt, str)
    prompt_ids = swarm.prompt_ids([{"role": "user", "content": prompt}] if is_chat else prompt)
    watch = swarm.watch(prompt_ids)
    async with aclosing(swarm.stream(prompt_ids, sampling)) as tokens:
        async for token in tokens:
            watch.add(token)
            if not as_json:
                print(token.text, end="", flush=True)
    print(json.dumps(watch.answer().as_json()) if as_json else "")
