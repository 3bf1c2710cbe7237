"""`shoal plan`: what machines that somebody has would give, before anything is downloaded."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from shoal.node.holdings.nearness import layout_for, reads_s
from shoal.node.holdings.placement import Around
from shoal.protocol.ids import PeerId
from shoal.simulations.forecast.compute import Calibration
from shoal.simulations.forecast.forecast import (
    PrefillForecast,
    StreamsForecast,
    Swarm,
    Tally,
    forecast_prefill,
    forecast_streams,
)
from shoal.simulations.forecast.layer_time import Conditions
from shoal.simulations.forecast.machines_file import UNLIMITED
from shoal.simulations.forecast.peers import Counts, Held, Link, Peer, TrunkHost, views
from shoal.simulations.forecast.placement import Placement, add
from shoal.simulations.forecast.routing import draw_routes
from shoal.simulations.forecast.shape import ModelShape
from shoal.simulations.forecast.words import share_lines

PROMPT = 256
PLAIN = Conditions()
GB = 1e9


@dataclass(frozen=True, slots=True)
class OneMore:
    """What another machine like the median one would change."""

    memory_gb: float
    missing_experts: int
    tokens_per_s: dict[int, float]
    """In all, by streams; empty while experts are missing."""


@dataclass(frozen=True, slots=True)
class Alone:
    """The model on the trunk host alone."""

    needs_gb: float
    has_gb: float
    fits: bool
    tokens_per_s: float | None
    """Of one stream, where it fits."""


@dataclass(frozen=True, slots=True)
class PlanReport:
    """The forecast."""

    model: str
    weight_format: str
    trunk_format: str
    machines: int
    calibration: str
    alone: Alone
    trunk_fits: bool
    missing_experts: int
    """More than 0: these machines cannot run the model, and nothing of speed is said."""
    copies: float
    streams: tuple[StreamsForecast, ...]
    prefill: PrefillForecast | None
    up_mb_per_1000_tokens: float | None
    """Through the trunk host's link."""
    down_mb_per_1000_tokens: float | None
    one_more: OneMore
    unknown_links: int = 0
    """Machines of whose links nothing is known: they count as unlimited."""
    is_own_link_known: bool = True
    """The trunk host's; likewise."""


@dataclass(frozen=True, slots=True)
class PlanSettings:
    """What is planned."""

    model: ModelShape
    trunk: TrunkHost
    peers: Sequence[Peer]
    calibration: Calibration
    streams: Sequence[int] = (1, 8, 32)
    holdings: Sequence[Held] | None = None
    """What the machines hold already. None: what they would choose, one after another."""
    seed: int = 0
    conditions: Conditions = PLAIN
    """What the network does beside round trips and rates."""
    prompt: int = PROMPT


def make_plan(settings: PlanSettings) -> PlanReport:
    """Forecast a swarm of these machines, of these and one more, and the trunk host alone."""
    model, placement = settings.model, Placement(settings.model.router, settings.model.num_moe_layers)
    counts = placement.nobody()
    holdings = list(_holdings(settings, placement, counts))
    streams = _streams(settings, settings.peers, holdings, counts)
    swarm = _swarm(settings, settings.peers, holdings, counts) if streams else None
    return PlanReport(
        model=model.name,
        weight_format=model.weight_format.name.lower(),
        trunk_format=model.trunk_format.value,
        machines=len(settings.peers),
        calibration=settings.calibration.source,
        alone=_alone(settings),
        trunk_fits=model.trunk.total <= settings.trunk.memory_bytes,
        missing_experts=int((counts < 1).sum()),
        copies=float(counts.mean()),
        streams=streams,
        prefill=forecast_prefill(swarm, settings.prompt, settings.seed, Tally()) if swarm else None,
        up_mb_per_1000_tokens=streams[0].up_bytes_per_token / 1000 if streams else None,
        down_mb_per_1000_tokens=streams[0].down_bytes_per_token / 1000 if streams else None,
        one_more=_one_more(settings, placement, counts, holdings),
        unknown_links=sum(not _is_known(peer.link) for peer in settings.peers),
        is_own_link_known=_is_known(settings.trunk.link),
    )


def _is_known(link: Link) -> bool:
    """Whether somebody has said how fast it is, one way at least."""
    return min(link.up, link.down) < UNLIMITED


def _holdings(settings: PlanSettings, placement: Placement, counts: Counts) -> Sequence[Held]:
    if settings.holdings is None:
        rooms = [_room(settings.model, peer) for peer in settings.peers]
        around, names = [_around(settings, peer) for peer in settings.peers], [peer.name for peer in settings.peers]
        return placement.fill(counts, rooms, names, lambda what, done, total: None, around)
    for held in settings.holdings:
        add(counts, held, 1)
    return settings.holdings


def _around(settings: PlanSettings, peer: Peer) -> Around:
    """What a machine would find of its network: others are taken to be as far from it as the trunk host is."""
    needed_s = reads_s(settings.model.router, settings.model.expert_bytes)
    slowest_s = max(other.rtt_s for other in settings.peers)
    return Around(layout_for([max(peer.rtt_s, slowest_s)], needed_s))


def _room(model: ModelShape, peer: Peer) -> int:
    return min(peer.memory_bytes // model.expert_bytes, model.num_experts)


def _streams(
    settings: PlanSettings, peers: Sequence[Peer], holdings: Sequence[Held], counts: Counts
) -> tuple[StreamsForecast, ...]:
    """None while experts or a place for the trunk are missing."""
    if int(counts.min()) < 1 or settings.model.trunk.total > settings.trunk.memory_bytes:
        return ()
    swarm = _swarm(settings, peers, holdings, counts)
    return tuple(forecast_streams(swarm, count, settings.seed, Tally()) for count in settings.streams)


def _swarm(settings: PlanSettings, peers: Sequence[Peer], holdings: Sequence[Held], counts: Counts) -> Swarm:
    model, rng = settings.model, np.random.default_rng(settings.seed)
    return Swarm(
        model,
        settings.trunk,
        peers,
        views(peers, holdings, counts),
        draw_routes(model.router, model.num_moe_layers, rng),
        settings.calibration,
        settings.conditions,
    )


def _one_more(settings: PlanSettings, placement: Placement, counts: Counts, holdings: Sequence[Held]) -> OneMore:
    median = sorted(settings.peers, key=lambda peer: peer.memory_bytes)[len(settings.peers) // 2]
    newcomer, counts = replace(median, name=PeerId("one-more")), counts.copy()
    held = placement.choose(counts, _room(settings.model, newcomer), newcomer.name, around=_around(settings, newcomer))
    add(counts, held, 1)
    streams = _streams(settings, [*settings.peers, newcomer], [*holdings, held], counts)
    rates = {each.streams: each.tokens_per_s for each in streams}
    return OneMore(newcomer.memory_bytes / GB, int((counts < 1).sum()), rates)


def _alone(settings: PlanSettings) -> Alone:
    """Everything in the trunk host's memory: no exchange, no link."""
    model, trunk = settings.model, settings.trunk
    needed = model.trunk.total + model.experts_bytes
    if needed > trunk.memory_bytes:
        return Alone(needed / GB, trunk.memory_bytes / GB, False, None)
    inside = Link(UNLIMITED, UNLIMITED)
    itself = Peer(PeerId("itself"), 0.0, inside, trunk.rates, trunk.memory_bytes)
    nothing = replace(settings.calibration, exchange_us=0.0, exchange_us_per_kib=0.0, dispatch_us=0.0)
    everything = [np.arange(model.num_experts)]
    free = replace(settings, conditions=Conditions(), calibration=nothing, trunk=replace(trunk, link=inside))
    swarm = _swarm(free, [itself], everything, np.ones((model.num_moe_layers, model.router.num_experts), np.int64))
    rate = forecast_streams(swarm, 1, settings.seed, Tally()).tokens_per_s
    return Alone(needed / GB, trunk.memory_bytes / GB, True, rate)


def plan_lines(report: PlanReport) -> Iterator[str]:
    """The report for people."""
    alone = report.alone
    yield f"{report.model}, experts {report.weight_format}, trunk {report.trunk_format}; {_machines(report.machines)}"
    if alone.fits:
        yield (
            f"it fits the trunk host alone ({_size(alone.needs_gb)} of {_size(alone.has_gb)}) and"
            f" needs no swarm: {alone.tokens_per_s:.2f} tokens/s there"
        )
    else:
        yield f"it does not fit the trunk host alone: {alone.needs_gb:.0f} GB, and {alone.has_gb:.0f} are there"
    if not report.trunk_fits:
        yield "the trunk by itself does not fit its host: choose a smaller --trunk-format, or another machine"
    if report.missing_experts:
        yield f"{report.missing_experts} experts have no place in {report.copies:.2f} copies: more machines are needed"
    yield from _speed_lines(report)
    yield _one_more_line(report)
    yield from _unknown_lines(report)
    yield f"compute: {report.calibration}"


def _speed_lines(report: PlanReport) -> Iterator[str]:
    if report.prefill is None or report.up_mb_per_1000_tokens is None or report.down_mb_per_1000_tokens is None:
        return
    yield f"{report.copies:.1f} copies of the experts"
    for row in report.streams:
        yield (
            f"{row.streams:3} stream{'' if row.streams == 1 else 's'}: {row.tokens_per_s_each:.2f} tokens/s each,"
            f" {row.tokens_per_s:.2f} in all; limited by {row.limit} ({row.shares[row.limit]:.0%})"
        )
    yield "where the time of one stream's token goes:"
    yield from share_lines(report.streams[0].shares)
    yield f"prompt of {report.prefill.tokens} tokens: {report.prefill.time_s:.1f} s; limited by {report.prefill.limit}"
    yield (
        f"data per 1,000 tokens at the trunk host: {report.up_mb_per_1000_tokens:,.0f} MB up,"
        f" {report.down_mb_per_1000_tokens:,.0f} MB down"
    )


def _one_more_line(report: PlanReport) -> str:
    more, before = report.one_more, {each.streams: each.tokens_per_s for each in report.streams}
    machine = f"one more machine of {_size(more.memory_gb)}"
    if not more.tokens_per_s:
        return f"{machine}: {more.missing_experts} experts still without a place"
    rates = (f"{rate:.2f} ({_change(rate, before.get(count))})" for count, rate in more.tokens_per_s.items())
    streams = ", ".join(str(count) for count in more.tokens_per_s)
    return f"{machine}: {', '.join(rates)} tokens/s in all with {streams} streams"


def _change(rate: float, before: float | None) -> str:
    """In percent; by the model's own randomness a few percent are none."""
    return f"{rate / before - 1:+.0%}" if before else "none before"


def _unknown_lines(report: PlanReport) -> Iterator[str]:
    """What a user may take for a fact and is none."""
    if report.unknown_links:
        yield (
            f"the links of {_machines(report.unknown_links)} are not known and count as unlimited"
            " (up_mbit_per_s and down_mbit_per_s in a file for --peers)"
        )
    if not report.is_own_link_known:
        yield "the trunk host's own link is not known and counts as unlimited: --up and --down say it, in Mbit/s"


def _machines(count: int) -> str:
    return f"{count} machine{'' if count == 1 else 's'}"


def _size(gigabytes: float) -> str:
    return f"{1000 * gigabytes:.0f} MB" if gigabytes < 1 else f"{gigabytes:.1f} GB"
