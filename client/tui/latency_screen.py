"""Where a token's time goes: a bar per layer, percentiles, and the peers that everybody waits for."""

from collections.abc import Sequence
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll

from shoal.client.translate import N_, _
from shoal.client.tui.bars import milliseconds, short, sparkline, split
from shoal.client.tui.event_book import SEGMENTS, LayerTimes, PassTimes, percentile
from shoal.client.tui.panel import Panel, Part
from shoal.client.tui.screen import ShoalScreen
from shoal.client.tui.swarm_screen import no_swarm
from shoal.client.tui.themes import DEFAULT_THEME, TIMES
from shoal.client.tui.words import segment_word

SIGNS = "█▞░▓╱·"
"""One for each of SEGMENTS, so that bars are read without colours."""

MEAN_PASSES = 32
"""Tokens that the mean is taken over."""


class Waterfall(VerticalScroll):
    """Scrolls where layers are many."""

    HELP = N_("A line per layer, from left to right what its time was spent on. m shows the last token or the mean.")


class LatencyScreen(ShoalScreen):
    """Screen 4."""

    MODE = "latency"
    HELP = Waterfall.HELP
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("m", "mean", N_("Last token / mean"), id="latency.mean"),
        Binding("space", "freeze", N_("Freeze"), id="latency.freeze"),
    ]

    def __init__(self) -> None:
        super().__init__()
        self._shows_mean = False
        self._is_frozen = False

    def compose_body(self) -> ComposeResult:
        yield Panel(id="latency-summary")
        with Waterfall(id="waterfall"):
            yield Panel(id="bars")
        yield Panel(id="slowest")

    def on_mount(self) -> None:
        self.query_one(Waterfall).focus()

    def action_mean(self) -> None:
        self._shows_mean = not self._shows_mean
        self._is_frozen = False
        self.show()

    def action_freeze(self) -> None:
        self._is_frozen = not self._is_frozen
        self.notify(_("Frozen.") if self._is_frozen else _("Running."))

    def show(self) -> None:
        if self._is_frozen:
            return
        summary, bars = self.query_one("#latency-summary", Panel), self.query_one("#bars", Panel)
        passes = list(self.session.book.decoding())
        if not passes:
            summary.set_parts(self._nothing())
            bars.set_parts([])
            return
        chosen = passes[-MEAN_PASSES:] if self._shows_mean else passes[-1:]
        layers = mean_layers(chosen)
        summary.set_parts(self._summary(passes, chosen))
        bars.set_parts(self._bars(layers))
        self.query_one("#slowest", Panel).set_parts(self._slowest())

    def _nothing(self) -> list[Part]:
        if self.session.swarm is None:
            return no_swarm(self.session.connection is not None)
        return [(_("No token yet: ask something on the first screen."), "$text-muted")]

    def _summary(self, passes: Sequence[PassTimes], chosen: Sequence[PassTimes]) -> list[Part]:
        totals = [each.total_s for each in passes]
        whole = [sum(column) / len(chosen) for column in zip(*(each.by_segment() for each in chosen), strict=True)]
        name = _("mean of {number} tokens").format(number=len(chosen)) if self._shows_mean else _("last token")
        mean_s = sum(each.total_s for each in chosen) / len(chosen)
        figures = _("p50 {p50} · p99 {p99} of {number} tokens").format(
            p50=milliseconds(percentile(totals, 0.5)), p99=milliseconds(percentile(totals, 0.99)), number=len(totals)
        )
        parts: list[Part] = [
            (f"{name}  ", "bold $foreground"),
            (f"{milliseconds(mean_s)}  ", "bold $primary"),
            (figures + "  ", "$foreground"),
            (sparkline(totals, 20) + "\n", "$secondary"),
        ]
        colours = TIMES.get(self.app.theme, TIMES[DEFAULT_THEME])
        per_line = len(SEGMENTS) if self.size.width >= 120 else len(SEGMENTS) // 2
        for place, (sign, colour, segment, seconds) in enumerate(zip(SIGNS, colours, SEGMENTS, whole, strict=True), 1):
            end = "\n" if place == per_line else ""
            parts.append((f"{sign * 2} ", colour))
            parts.append((f"{segment_word(segment) + ' ' + milliseconds(seconds):<20}{end}", "$foreground"))
        return parts

    def _bars(self, layers: Sequence[LayerTimes]) -> list[Part]:
        width = max(10, self.size.width - 22)
        longest = max((layer.total for layer in layers), default=0.0)
        colours = TIMES.get(self.app.theme, TIMES[DEFAULT_THEME])
        parts: list[Part] = []
        for layer in layers:
            parts.append((f"L{layer.layer:<4}", "$text-muted"))
            widths = split(layer.seconds(), longest, width)
            parts += [(sign * n, colour) for sign, colour, n in zip(SIGNS, colours, widths, strict=True) if n]
            parts.append((" " * (width - sum(widths)) + f" {milliseconds(layer.total):>9}\n", "$foreground"))
        return parts

    def _slowest(self) -> list[Part]:
        times = self.session.book.peer_times()[: max(1, (self.size.width - 18) // 34)]
        parts: list[Part] = [(_("slowest peers") + "  ", "bold $foreground")] if times else []
        for each in times:
            words = _("p50 {p50} p99 {p99}").format(
                p50=milliseconds(each.p50_ms / 1000), p99=milliseconds(each.p99_ms / 1000)
            )
            parts.append((f"{short(each.peer)} ", "$primary"))
            parts.append((f"{words}   ", "$text-muted"))
        return parts


def mean_layers(passes: Sequence[PassTimes]) -> list[LayerTimes]:
    """The mean of each layer over passes; of the layers that all of them have."""
    means = []
    for column in zip(*(each.layers for each in passes), strict=False):
        values = [sum(part) / len(column) for part in zip(*(layer.seconds() for layer in column), strict=True)]
        means.append(LayerTimes(column[0].layer, *values))
    return means
