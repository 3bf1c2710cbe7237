"""Every holder we know: how far, how well, what it holds, and whether it is asked."""

from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.content import Content
from textual.widgets import DataTable

from shoal.client.routing.peers import PeerSnapshot
from shoal.client.translate import N_, _
from shoal.client.tui.bars import milliseconds, short
from shoal.client.tui.panel import Panel
from shoal.client.tui.screen import ShoalScreen
from shoal.client.tui.swarm_screen import no_swarm
from shoal.client.tui.words import breaker_sign, breaker_style, breaker_word

COLUMNS = (N_("peer"), N_("state"), N_("RTT"), N_("experts"), N_("layers"), N_("failed"), N_("p99"), N_("protocol"))


class PeersScreen(ShoalScreen):
    """Screen 5."""

    MODE = "peers"
    HELP = N_(
        "The peers that hold experts. Arrows move; below the table stands all that is known of one. y copies its id."
    )
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("y", "copy", N_("Copy id"), id="peers.copy"),
        Binding("s", "sort", N_("Sort"), id="peers.sort"),
    ]

    def __init__(self) -> None:
        super().__init__()
        self._by_rtt = False

    def compose_body(self) -> ComposeResult:
        yield Panel(id="peers-summary")
        yield DataTable[Content](id="peers", cursor_type="row", zebra_stripes=False)
        yield Panel(id="peer-detail")

    def on_mount(self) -> None:
        table = self.query_one(DataTable)
        for column in COLUMNS:
            table.add_column(_(column), key=column)
        table.focus()

    def show(self) -> None:
        summary, table = self.query_one("#peers-summary", Panel), self.query_one(DataTable)
        table.display = self.session.swarm is not None
        if self.session.swarm is None:
            summary.set_parts(no_swarm(self.session.connection is not None))
            return
        peers = self._sorted()
        usable = sum(peer.is_usable for peer in peers)
        words = _("{usable} of {number} peers in use").format(usable=usable, number=len(peers))
        summary.set_parts([(words, "$foreground")])
        if {peer.peer for peer in peers} != {key.value for key in table.rows}:
            self._refill(peers)
        for peer in peers:
            for column, cell in zip(COLUMNS, self._cells(peer), strict=True):
                if table.get_cell(peer.peer, column) != cell:
                    table.update_cell(peer.peer, column, cell, update_width=True)
        self.show_detail()

    @on(DataTable.RowHighlighted)
    def show_detail(self) -> None:
        """All that is known of the peer under the cursor."""
        peer = self._chosen()
        words = [] if peer is None else _detail(peer)
        self.query_one("#peer-detail", Panel).set_parts(words)

    def action_copy(self) -> None:
        peer = self._chosen()
        if peer is not None:
            self.app.copy_to_clipboard(peer.peer)
            self.notify(_("Copied."))

    def action_sort(self) -> None:
        self._by_rtt = not self._by_rtt
        self.query_one(DataTable).clear()
        self.show()

    def _sorted(self) -> list[PeerSnapshot]:
        peers = list(self.session.peers())
        return sorted(peers, key=lambda peer: peer.rtt_ms or 0.0) if self._by_rtt else peers

    def _refill(self, peers: list[PeerSnapshot]) -> None:
        table = self.query_one(DataTable)
        place = table.cursor_row
        table.clear()
        for peer in peers:
            table.add_row(*self._cells(peer), key=peer.peer)
        table.move_cursor(row=min(place, len(peers) - 1))

    def _cells(self, peer: PeerSnapshot) -> list[Content]:
        times = {each.peer: each for each in self.session.book.peer_times()}.get(peer.peer)
        state = f"{breaker_sign(peer.breaker)} {breaker_word(peer.breaker)}"
        if peer.retry_in_s:
            state += f" {peer.retry_in_s:.0f} s"
        return [
            Content(short(peer.peer)),
            Content.styled(state, breaker_style(peer.breaker)),
            Content("–" if peer.rtt_ms is None else milliseconds(peer.rtt_ms / 1000)),
            Content(str(peer.num_experts) + (f" +{peer.num_cold}" if peer.num_cold else "")),
            Content(str(len(peer.holdings))),
            Content(str(peer.failures)),
            Content("–" if times is None else milliseconds(times.p99_ms / 1000)),
            Content("–" if peer.version is None else str(peer.version)),
        ]

    def _chosen(self) -> PeerSnapshot | None:
        table = self.query_one(DataTable)
        if not table.rows:
            return None
        key = table.coordinate_to_cell_key(table.cursor_coordinate).row_key.value
        return next((peer for peer in self.session.peers() if peer.peer == key), None)


def _detail(peer: PeerSnapshot) -> list[tuple[str, str]]:
    held = "  ".join(f"L{layer}: {ranges(sorted(experts))}" for layer, experts in peer.holdings.items())
    return [
        (peer.peer + "\n", "bold $primary"),
        (_("holds") + "  ", "$text-muted"),
        (held or _("nothing"), "$foreground"),
        ("\n" + _on_disk(peer) if peer.num_cold else "", "$text-muted"),
    ]


def _on_disk(peer: PeerSnapshot) -> str:
    words = _("on disk: {experts}, asked for only when nobody else is left")
    return words.format(experts=peer.num_cold)


def ranges(numbers: list[int]) -> str:
    """`0-15,20` of ascending numbers."""
    spans: list[tuple[int, int]] = []
    for number in numbers:
        first, last = spans.pop() if spans and spans[-1][1] == number - 1 else (number, number)
        spans.append((first, max(last, number)))
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in spans)
