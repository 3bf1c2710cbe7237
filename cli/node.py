"""`shoal node`: give this machine's memory and kernels to a swarm."""

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shoal.cli.boundary import reporting_errors, run_coroutine
from shoal.cli.options import KernelOption, NameOption, parse_size, program
from shoal.client.translate import _

if TYPE_CHECKING:
    from shoal.cli.progress import ProgressBar
    from shoal.node.holdings.joining import Choice
    from shoal.node.node_info import NodeInfo
    from shoal.node.settings import NodeSettings


def node(
    model: Annotated[
        Path | None,
        typer.Option(
            help="Checkpoint directory, or NAME@ROOT of `shoal models ls`. Default: the embedded one.",
            envvar="SHOAL_MODEL",
        ),
    ] = None,
    experts: Annotated[
        str | None, typer.Option(help="What to hold: all, 0-15 (of every layer), 3:0-31,4:5. Default: what is rarest.")
    ] = None,
    anchor: Annotated[
        bool | None,
        typer.Option(
            help="Be an anchor, the last resort: announce every expert, read each from disk when it is asked for, keep "
            "the latest within the share."
        ),
    ] = None,
    seed_trunk: Annotated[
        bool | None,
        typer.Option(help="Keep the rest of the model too, and give it to clients that have only a token."),
    ] = None,
    share: Annotated[
        str | None, typer.Option("--share", "--ram", help="Memory for experts, e.g. 2GB.", envvar="SHOAL_SHARE")
    ] = None,
    cold: Annotated[
        str | None,
        typer.Option(
            help="Disk for experts beside those in memory, e.g. 40GB: each is read when it is asked for, as a last "
            "resort."
        ),
    ] = None,
    vram: Annotated[str | None, typer.Option(help="Most memory of a CUDA device, in all, e.g. 6GB.")] = None,
    join: Annotated[list[str] | None, typer.Option(help="A peer's address or an invite token; repeatable.")] = None,
    host: Annotated[
        str | None, typer.Option(help="Address to listen on Default: 127.0.0.1.", envvar="SHOAL_HOST")
    ] = None,
    port: Annotated[int | None, typer.Option(help="Port of the direct channel; 0: any.", min=0, max=65535)] = None,
    p2p_port: Annotated[int | None, typer.Option(help="Port of libp2p; 0: any free one.", min=0, max=65535)] = None,
    lan: Annotated[
        bool | None, typer.Option(help="Find peers on the LAN, and be found there. Default: yes, unless on loopback.")
    ] = None,
    identity: Annotated[
        Path | None, typer.Option(help="Key file, made when missing. Default: a new key for this run.")
    ] = None,
    threads: Annotated[int | None, typer.Option(help="Kernel threads; 0: half of the cores.", min=0)] = None,
    kernel: Annotated[
        KernelOption | None, typer.Option(help="What runs experts Default: C++ where built.", envvar="SHOAL_KERNEL")
    ] = None,
    name: NameOption = None,
    up: Annotated[str | None, typer.Option(help="Most bytes per second to send, e.g. 500KB.")] = None,
    down: Annotated[str | None, typer.Option(help="Most bytes per second to receive.")] = None,
    monthly: Annotated[str | None, typer.Option(help="Most bytes per month, both ways, e.g. 100GB.")] = None,
    disk: Annotated[
        str | None, typer.Option(help="Most that caches, packed experts and logs may take on disk, e.g. 40GB.")
    ] = None,
    lan_unlimited: Annotated[
        bool | None, typer.Option(help="Neither limit nor count traffic with private addresses.")
    ] = None,
    pause_when: Annotated[
        list[str] | None, typer.Option(help="Pause while such a program runs, e.g. game.exe; repeatable.")
    ] = None,
    max_other_load: Annotated[
        float | None, typer.Option(help="Pause while others keep a larger share of the processors busy, e.g. 0.5.")
    ] = None,
    schedule: Annotated[str | None, typer.Option(help="When to work, e.g. 22:00-06:00.")] = None,
    idle_only: Annotated[bool | None, typer.Option(help="Work only while nobody uses this machine.")] = None,
    on_battery: Annotated[bool | None, typer.Option(help="Work on battery power too.")] = None,
    on_metered: Annotated[bool | None, typer.Option(help="Work on a metered connection too.")] = None,
    low_priority: Annotated[bool | None, typer.Option(help="Yield to everything else. Default: yes.")] = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error.")] = None,
    is_open: Annotated[
        bool, typer.Option("--open", help="Begin an open swarm: whoever has an address may enter.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="First run: take the defaults and keep them.")] = False,
) -> None:
    """Hold experts of a model and serve them until SIGTERM or Ctrl-C."""
    with reporting_errors():
        from shoal.cli.first_run import first_run
        from shoal.cli.own_swarm import settled
        from shoal.cli.progress import ProgressBar
        from shoal.cli.settings_file import node_settings, settings_path
        from shoal.cli.settings_layers import read_node_table
        from shoal.node.host import serve_until_stopped
        from shoal.node.settings import NodeSettings
        from shoal.simulations.demo_model import MODEL_DIRECTORY

        flags = {
            "model": model, "experts": experts, "anchor": anchor, "seed_trunk": seed_trunk,
            "share_bytes": parse_size(share), "cold_bytes": parse_size(cold),
            "vram_bytes": parse_size(vram), "join": join or None, "host": host,
            "port": port, "p2p_port": p2p_port, "lan": lan, "identity": identity, "threads": threads,
            "kernel": kernel.value if kernel else None, "name": name, "log_level": log_level,
        }  # fmt: skip
        guest_flags = {
            "up_bytes_per_s": parse_size(up), "down_bytes_per_s": parse_size(down),
            "monthly_bytes": parse_size(monthly), "disk_bytes": parse_size(disk),
            "schedule": schedule, "idle_only": idle_only, "on_battery": on_battery,
            "on_metered": on_metered, "low_priority": low_priority,
            "lan_unlimited": lan_unlimited, "pause_when": pause_when or None, "max_other_load": max_other_load,
        }  # fmt: skip
        first_run(yes, is_share_given=share is not None or experts is not None)
        given = read_node_table(settings_path(), os.environ)
        settings: NodeSettings = node_settings({"model": str(MODEL_DIRECTORY), **given}, flags, guest_flags)
        named = settings.model if model is not None or "model" in given else None
        place = settled(settings, is_open)

        bar = ProgressBar()

        def announce(info: "NodeInfo") -> None:
            bar.stop()
            place.remember(info)
            _announce(info, model, settings.name)
            if info.num_missing:  # it serves already, and the rest comes meanwhile
                bar.start()

        def show(stage: str, done_bytes: int, total_bytes: int) -> None:
            bar(stage, done_bytes, total_bytes)
            if stage == "fetching" and done_bytes >= total_bytes:
                bar.stop()

        async def serve() -> None:
            found = await _node_model(named, place.settings, bar)
            await serve_until_stopped(replace(place.settings, model=found), announce, show)

        with bar:
            run_coroutine(serve)
        print(_("stopped"), file=sys.stderr)


async def _node_model(named: Path | None, settings: "NodeSettings", bar: "ProgressBar") -> Path:
    """The model that was named, or the token's; of one that is not here, what describes it is fetched first."""
    from shoal.cli.token_model import Telling, model_by_words, on_stderr
    from shoal.node.host import throttle_of

    lan_host = settings.host if settings.lan else None
    telling = Telling(bar, on_stderr)
    return await model_by_words(named, settings.join, telling, lan_host, False, throttle_of(settings.guest))


def _announce(info: "NodeInfo", model: Path | None, name: str) -> None:
    from shoal.cli.reports import size

    of_model = f" --model {model}" if model else ""
    of_name = "" if name == "node" else f" --name {name}"
    held = _("holding {experts} experts ({size_mb:.0f} MB) as {peer}")
    print(held.format(experts=info.num_experts, size_mb=info.resident_bytes / 1e6, peer=info.peer))
    if info.num_cold:
        words = _("and {experts} more on disk, read when nobody else has them (about {read_ms} ms each)")
        print(words.format(experts=info.num_cold, read_ms=info.read_ms))
    if info.num_missing:
        words = _(
            "fetching {experts} experts ({size}) from peers, and serving each as soon as it is verified; "
            "see {program} status"
        )
        print(words.format(experts=info.num_missing, size=size(info.missing_bytes), program=program()))
    if info.choice is not None:
        print(_chosen(info.choice))
    if info.is_private:  # its token is a secret: never in what may become a log
        print(_("use it:    ") + f"{program()} run 'Once upon a time'{of_model}")
        print(_("join it:   ") + f"{program()} invite > FILE; {program()} join < FILE")
    else:
        print(_("use it:    ") + f"{program()} run 'Once upon a time'{of_model} --join {info.invite}")
        print(_("join it:   ") + f"{program()} node{of_model} --join {info.invite}")
    print(_("pause:     ") + f"{program()} pause 2h{of_name}; {program()} status{of_name}")
    print(_("stop:      Ctrl-C (finishes what it has begun)"), flush=True)


def _chosen(choice: "Choice") -> str:
    """Why a node holds what it holds, if that was left to it."""
    words = _("chosen: {groups} whole groups; nobody held {missing} experts, {rare} had too few holders")
    return words.format(groups=choice.num_whole_groups, missing=choice.num_missing, rare=choice.num_rare)
