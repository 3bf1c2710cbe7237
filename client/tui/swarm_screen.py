"""Who holds what: the whole model as a map, one layer closer, and the holders of one expert."""

from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType

from shoal.client.chat.coverage import CoverageSummary, NextNode, next_node, summarize
from shoal.client.translate import N_, _, ngettext
from shoal.client.tui.bars import bar, milliseconds, short, size
from shoal.client.tui.heat_cells import GLYPHS, MAX_SHADE
from shoal.client.tui.heat_map import EMPTY, HeatMap, Picture
from shoal.client.tui.panel import Panel, Part
from shoal.client.tui.preferences import HEAT_STYLES
from shoal.client.tui.screen import ShoalScreen
from shoal.client.tui.themes import DEFAULT_THEME, HEAT, MONO_THEME
from shoal.client.tui.words import breaker_sign, breaker_style, breaker_word
from shoal.protocol.ids import ExpertId, LayerId

EXPERTS_PER_ROW = 32
"""Of the closer look at one layer: a routing group of DeepSeek-V3, and eight rows of them fit 24 lines."""


class SwarmScreen(ShoalScreen):
    """Screen 2."""

    MODE = "swarm"
    HELP = N_("Every expert of every layer and how many peers hold it. × is an expert that nobody holds.")
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("backspace,escape", "wider", N_("Wider"), id="swarm.wider"),
        Binding("g", "style", N_("Colours / signs / digits"), id="swarm.style"),
        Binding("w", "worst", N_("Worst layer"), id="swarm.worst"),
    ]

    def __init__(self) -> None:
        super().__init__()
        self._layer: LayerId | None = None
        """The layer that is looked at closely; None: the whole model."""

    def compose_body(self) -> ComposeResult:
        yield Panel(id="swarm-summary")
        yield HeatMap(id="map")
        yield Panel(id="swarm-detail")

    def on_mount(self) -> None:
        chosen = self.session.preferences.heat_style
        self.query_one(HeatMap).heat_style = chosen or ("glyphs" if self.app.theme == MONO_THEME else "blocks")
        self.query_one(HeatMap).focus()

    def show(self) -> None:
        summary, heat_map = self.query_one("#swarm-summary", Panel), self.query_one(HeatMap)
        swarm = self.session.swarm
        if swarm is None:
            summary.set_parts(no_swarm(self.session.connection is not None))
            heat_map.picture = EMPTY
            return
        coverage = swarm.coverage()
        facts = summarize(coverage)
        mend = next_node(coverage, swarm.expert_bytes)
        summary.set_parts([*self._facts(facts), *self._mend(mend), *self._legend()])
        if self._layer is not None and self._layer not in coverage:
            self._layer = None
        heat_map.picture = self._picture(coverage)
        self._show_detail()

    @on(HeatMap.Moved)
    def _show_detail(self) -> None:
        chosen = self.chosen()
        if chosen is not None:
            self.query_one("#swarm-detail", Panel).set_parts(self._detail(*chosen))

    @on(HeatMap.Chosen)
    def look_closer(self) -> None:
        """From the model to the layer under the cursor."""
        chosen = self.chosen()
        if chosen is None or self._layer is not None:
            return
        layer, experts = chosen
        self._layer = layer
        self._jump(divmod(experts.start, EXPERTS_PER_ROW))

    def action_wider(self) -> None:
        if self._layer is not None and self.session.swarm is not None:
            place = list(self.session.swarm.coverage()).index(self._layer)
            self._layer = None
            self._jump((place, 0))

    def action_worst(self) -> None:
        if self.session.swarm is None:
            return
        worst = summarize(self.session.swarm.coverage()).worst_layer
        if worst is not None:
            self._layer = worst
            counts = list(self.session.swarm.coverage()[worst].values())
            self._jump(divmod(counts.index(min(counts)), EXPERTS_PER_ROW))

    def action_style(self) -> None:
        heat_map = self.query_one(HeatMap)
        heat_map.heat_style = HEAT_STYLES[(HEAT_STYLES.index(heat_map.heat_style) + 1) % len(HEAT_STYLES)]
        self.refresh_all()

    def chosen(self) -> tuple[LayerId, range] | None:
        """The layer and the experts under the cursor; the first layer, where several share a cell."""
        heat_map, swarm = self.query_one(HeatMap), self.session.swarm
        rows, columns = heat_map.cursor_rows(), heat_map.cursor_columns()
        if swarm is None or not rows or not columns:
            return None
        if self._layer is not None:
            start = rows.start * EXPERTS_PER_ROW + columns.start
            return self._layer, range(start, start + len(columns))
        return list(swarm.coverage())[rows.start], columns

    def _jump(self, cursor: tuple[int, int]) -> None:
        heat_map = self.query_one(HeatMap)
        heat_map.picture = EMPTY
        self.show()
        heat_map.cursor = cursor
        heat_map.action_move(0, 0)
        self.show()

    def _picture(self, coverage: dict[LayerId, dict[ExpertId, int]]) -> Picture:
        if self._layer is None:
            return Picture(coverage, [f"L{layer}" for layer in coverage])
        counts = coverage[self._layer]
        starts = range(0, len(counts), EXPERTS_PER_ROW)
        rows = {
            LayerId(start): {
                ExpertId(e): counts[ExpertId(e)] for e in range(start, min(start + EXPERTS_PER_ROW, len(counts)))
            }
            for start in starts
        }
        return Picture(rows, [f"E{start}" for start in starts])

    def _facts(self, facts: CoverageSummary) -> list[Part]:
        style = "bold $success" if facts.is_complete else "bold $error"
        sign = "●" if facts.is_complete else "×"
        where = _("whole model") if self._layer is None else _("layer {layer}").format(layer=self._layer)
        parts = [
            (f"{where}  ", "bold $foreground"),
            (f"{sign} {bar(facts.percent / 100, 20 if self.size.width >= 100 else 8)} {facts.percent:.1f} %  ", style),
            (_("{number} experts").format(number=facts.num_experts) + " · ", "$foreground"),
            (
                _("fewest {fewest} · mean {mean:.1f}").format(fewest=facts.min_replicas, mean=facts.mean_replicas),
                "$foreground",
            ),
        ]
        if facts.worst_layer is not None and facts.min_replicas < 2:
            parts.append((" · " + _("worst layer {layer}").format(layer=facts.worst_layer), "$warning"))
        return [*parts, ("\n", "")]

    def _mend(self, mend: NextNode | None) -> list[Part]:
        if mend is None:
            return [("▲ " + _("Every expert has two holders or more.") + "\n", "$success")]
        words = (
            _("One more node with {size} closes layer {layer}.")
            if mend.closes_gap
            else _("One more node with {size} gives all of layer {layer} a second holder.")
        )
        style = "$error" if mend.closes_gap else "$warning"
        return [("▲ " + words.format(size=size(mend.size_bytes), layer=mend.layer) + "\n", style)]

    def _legend(self) -> list[Part]:
        """What a cell's colour and sign say."""
        style = self.query_one(HeatMap).heat_style
        colours = HEAT.get(self.app.theme, HEAT[DEFAULT_THEME])
        parts: list[Part] = [(_("replicas") + " ", "$text-muted")]
        for count in range(MAX_SHADE + 1):
            name = f"{count}+" if count == MAX_SHADE else str(count)
            sign = (GLYPHS[count], "$foreground") if style == "glyphs" else ("██", colours[count])
            parts += [sign, (f" {name}  ", "$text-muted")] if style != "digits" else []
        return parts if style != "digits" else [(_("digits are replicas, 9 means nine or more"), "$text-muted")]

    def _detail(self, layer: LayerId, experts: range) -> list[Part]:
        """Who holds what is under the cursor."""
        name = str(experts.start) if len(experts) == 1 else f"{experts.start}-{experts.stop - 1}"
        wanted = {ExpertId(expert) for expert in experts}
        holders = [peer for peer in self.session.peers() if wanted & peer.holdings.get(layer, frozenset())]
        count = ngettext("{number} holder", "{number} holders", len(holders)).format(number=len(holders))
        parts: list[Part] = [
            (_("layer {layer} · expert {expert}").format(layer=layer, expert=name), "bold $primary"),
            (f" · {count}\n" if holders else " · " + _("nobody holds it: answers must wait") + "\n", "$foreground"),
        ]
        for peer in holders[:8]:
            rtt = "–" if peer.rtt_ms is None else milliseconds(peer.rtt_ms / 1000)
            parts.append((f"{breaker_sign(peer.breaker)} ", breaker_style(peer.breaker)))
            parts.append((f"{short(peer.peer)} {rtt} {breaker_word(peer.breaker)}   ", "$foreground"))
        return parts


def no_swarm(is_connected: bool) -> list[Part]:
    """What a screen about a swarm says where there is none."""
    if not is_connected:
        return [(_("Not connected yet."), "$warning")]
    return [
        (_("This conversation goes through an endpoint, which does not show its swarm.") + "\n\n", "$foreground"),
        (_("To see one, join it:") + "  ", "$text-muted"),
        ("shoal chat --join TOKEN", "bold $primary"),
    ]
