"""A node as a guest on its owner's machine: priority, signals, the control socket, logs, limits, and the guest's loop.

What `shoal node` runs. `daemon.py` is the node itself, which simulations run without all this.
"""

import asyncio
import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial

import psutil

from shoal.experts.locations import default_cache_dir
from shoal.node.control import NodeControl
from shoal.node.daemon import no_progress, running_node, until_stopped
from shoal.node.guest.guest import Guest, ReadSensors
from shoal.node.guest.pause_file import PauseFile
from shoal.node.guest.schedule import month_of, parse_schedule
from shoal.node.guest.sensors import MachineSensors
from shoal.node.guest.transfer_meter import TransferMeter
from shoal.node.log_events import NodeDraining, NodeReady, NodeStopped, TcpIsSlow, TransferNotCounted, log_event
from shoal.node.logs import log_path, logging_to, state_dir
from shoal.node.node_info import NodeInfo
from shoal.node.settings import GuestSettings, NodeSettings
from shoal.node.telemetry.mqtt_settings import check_mqtt
from shoal.node.telemetry.telemetry import send_telemetry
from shoal.node.weights.loading import StageProgress
from shoal.node.weights.packing import LOGS_BYTES, make_room, used_bytes
from shoal.protocol.errors import InvalidRequest
from shoal.protocol.net.channel import Traffic
from shoal.protocol.net.control_socket import control_server, runtime_dir
from shoal.protocol.net.direct import format_address
from shoal.protocol.net.sd_notify import sd_notifier
from shoal.protocol.net.tcp import TcpKernel, TcpTrouble, leaves_this_machine, read_tcp_kernel, tcp_advice
from shoal.protocol.net.throttle import Throttle, TokenBucket

NICE = 19
"""The lowest priority there is: it gets what nobody else wants."""


async def serve_until_stopped(
    settings: NodeSettings,
    on_ready: Callable[[NodeInfo], None],
    progress: StageProgress = no_progress,
    read: ReadSensors | None = None,
) -> None:
    """Run a node until SIGTERM, SIGINT or `Drain`, then drain; a second signal ends it at once. read: None has this
    machine's sensors.

    Raises:
        ShoalError: it could not start.
    """
    stop = asyncio.Event()
    loop, main = asyncio.get_running_loop(), asyncio.current_task()

    def on_signal() -> None:
        if stop.is_set() and main is not None:
            main.cancel()
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    with suppress(asyncio.CancelledError):
        await host(settings, stop, on_ready, progress, read or MachineSensors(settings.guest))


async def host(
    settings: NodeSettings,
    stop: asyncio.Event,
    on_ready: Callable[[NodeInfo], None],
    progress: StageProgress,
    read: ReadSensors,
) -> None:
    """Run a node until `stop` is set.

    Raises:
        NodeAlreadyRunning: another process has this name. ShoalError: it could not start.
    """
    states, loop = state_dir(), asyncio.get_running_loop()
    check_disk(settings)
    if settings.mqtt is not None:
        check_mqtt(settings.mqtt)
    if settings.guest.low_priority:
        yield_to_others()
    traffic, lan_traffic = Traffic(), Traffic()
    guest_settings = settings.guest
    zone = parse_schedule("", guest_settings.time_zone).zone
    meter = TransferMeter(
        states / f"{settings.name}.transfer.json", traffic, lambda: month_of(time.time(), zone),
        guest_settings.monthly_bytes,
    )  # fmt: skip
    guest = Guest(guest_settings, read, meter, PauseFile(states / f"{settings.name}.pause.json"), time.time)
    try:
        with logging_to(log_path(states, settings.name), settings.log_level, loop) as memory:
            control = NodeControl(settings, guest, meter, traffic, lan_traffic, memory, stop, time.time, time.time())
            async with control_server(runtime_dir(), settings.name, control):
                await _run(settings, control, on_ready, progress)
    finally:
        try:
            meter.close()
        except OSError as error:  # a full disk: the file has counted too much, never too little
            log_event(TransferNotCounted(type(error).__name__))


async def _run(
    settings: NodeSettings, control: NodeControl, on_ready: Callable[[NodeInfo], None], progress: StageProgress
) -> None:
    """The node from its start to its end, which is logged."""
    notify, stop, error = sd_notifier(os.environ), control.stop, "Cancelled"
    throttle = _throttle(settings.guest, control)

    async def serve(is_ready: asyncio.Event) -> None:
        verdict = await control.guest.first_verdict()
        async with running_node(settings, progress, throttle, is_open=verdict.reason is None) as node:
            control.node = node
            is_ready.set()
            log_event(NodeReady(node.info.peer, node.info.num_experts, node.info.resident_bytes))
            warn_of_tcp(settings.host, read_tcp_kernel())
            on_ready(node.info)
            notify("READY=1")
            guarding = asyncio.create_task(control.guest.run(node.gate), name="guest")
            telling = _start_telemetry(control)
            try:
                await _first(guarding, stop)
            finally:
                notify("STOPPING=1")
                log_event(NodeDraining())
                guarding.cancel()
                if telling is not None:
                    telling.cancel()
                    await asyncio.wait({telling})

    try:
        await until_stopped(serve, stop)
        error = ""
    except Exception as failure:  # reported by who called us; the log gets its name
        error = type(failure).__name__
        raise
    finally:
        if control.node is not None:  # one that could not start has said why, and nothing else
            log_event(NodeStopped(error or None))


def _start_telemetry(control: NodeControl) -> asyncio.Task[None] | None:
    """A task beside the node, if the owner wants it; nothing waits for it but its own goodbye."""
    settings = control.settings.mqtt
    if settings is None:
        return None
    return asyncio.create_task(send_telemetry(settings, control.status, _uniform), name="telemetry")


def _uniform() -> float:
    """A random number in [0, 1)."""
    return int.from_bytes(os.urandom(4), "big") / 2**32


async def _first(guarding: asyncio.Task[None], stop: asyncio.Event) -> None:
    """Wait for `stop`; a guest that fails ends the node, for nobody would keep its limits."""
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({guarding, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if guarding.done():
            guarding.result()
    finally:
        stopping.cancel()


def yield_to_others() -> None:
    """Run this process and what it starts at the lowest priority. Call it before threads and children are made."""
    os.nice(max(0, NICE - os.nice(0)))
    process = psutil.Process()
    if hasattr(psutil, "IOPRIO_CLASS_IDLE"):  # Linux and Windows
        with suppress(psutil.Error, OSError):
            process.ionice(psutil.IOPRIO_CLASS_IDLE)


def check_disk(settings: NodeSettings) -> None:
    """Keep what shoal has on disk below the owner's limit.

    Raises:
        InvalidRequest: it is above already, or will be: the limit is less than what a node without a weight writes.
    """
    limit = settings.guest.disk_bytes
    make_room(settings)
    used = used_bytes(settings)
    if limit is not None and used > limit:
        raise InvalidRequest(
            f"shoal's files take {used / 1e6:,.1f} MB and the limit is {limit / 1e6:,.1f} MB;"
            f" try: rm -r {settings.cache_dir or default_cache_dir()} (what is in it can be computed again)"
        )
    if limit is not None and limit < LOGS_BYTES:
        raise InvalidRequest(
            f"logs, counts and manifests may take {LOGS_BYTES / 1e6:,.1f} MB on disk and the limit is"
            f" {limit / 1e6:,.3f} MB; give more, or no limit"
        )


def warn_of_tcp(host: str, kernel: TcpKernel) -> None:
    """Log, once, what of this kernel's settings makes exchanges slow; on loopback nothing does. libp2p's sockets are
    its own program's, so that what ours choose for themselves does not help them."""
    advice = tcp_advice(kernel, sets_own=False)
    if advice is not None and leaves_this_machine([format_address(host, 0)]):
        is_paced, is_restarting = (each in advice.troubles for each in (TcpTrouble.PACED, TcpTrouble.RESTARTS))
        log_event(TcpIsSlow(is_paced, is_restarting, advice.command))


def _throttle(guest: GuestSettings, control: NodeControl) -> Throttle:
    clock = asyncio.get_running_loop().time
    bucket = partial(_bucket, clock=clock)
    up, down = bucket(guest.up_bytes_per_s), bucket(guest.down_bytes_per_s)
    return Throttle(up, down, control.traffic, control.lan_traffic if guest.lan_unlimited else None)


def throttle_of(guest: GuestSettings) -> Throttle:
    """The owner's limits on bytes, for what comes before the node runs; inside a loop. It is not counted."""
    bucket = partial(_bucket, clock=asyncio.get_running_loop().time)
    return Throttle(bucket(guest.up_bytes_per_s), bucket(guest.down_bytes_per_s))


def _bucket(bytes_per_s: int | None, clock: Callable[[], float]) -> TokenBucket | None:
    return None if bytes_per_s is None else TokenBucket(bytes_per_s, clock)
