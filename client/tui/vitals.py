"""The swarm beside the conversation, where the terminal is wide enough: coverage, pace, and who is answering."""

from shoal.client.translate import _
from shoal.client.tui.bars import bar, milliseconds, short, sparkline
from shoal.client.tui.event_book import SEGMENTS, percentile
from shoal.client.tui.panel import Panel, Part
from shoal.client.tui.session import Session
from shoal.client.tui.words import segment_word

WIDTH = 28
"""Characters inside the panel."""


class Vitals(Panel):
    """Redrawn while the chat screen is seen."""

    def show(self, session: Session) -> None:
        """Draw what there is to say."""
        parts = [*_coverage(session), *_pace(session), *_where_time_goes(session), *_peers(session)]
        self.set_parts(parts)


def _title(words: str) -> Part:
    return (f"{words}\n", "bold $primary")


def _coverage(session: Session) -> list[Part]:
    coverage = session.coverage()
    if coverage is None:
        return []
    style = "$success" if coverage.is_complete else "bold $error"
    return [
        _title(_("Coverage")),
        (bar(coverage.percent / 100, WIDTH - 8), style),
        (f" {coverage.percent:5.1f} %\n", style),
        (_("fewest replicas {number}").format(number=coverage.min_replicas) + "\n\n", "$text-muted"),
    ]


def _pace(session: Session) -> list[Part]:
    gaps = list(session.meter.gaps_s) if session.meter else []
    if not gaps:
        return []
    p50, p99 = milliseconds(percentile(gaps, 0.5)), milliseconds(percentile(gaps, 0.99))
    return [
        _title(_("Time per token")),
        (sparkline(gaps, WIDTH) + "\n", "$secondary"),
        (_("p50 {p50}  p99 {p99}").format(p50=p50, p99=p99) + "\n\n", "$text-muted"),
    ]


def _where_time_goes(session: Session) -> list[Part]:
    passes = list(session.book.decoding())[-32:]
    if not passes:
        return []
    sums = [sum(column) for column in zip(*(each.by_segment() for each in passes), strict=True)]
    whole = sum(sums) or 1.0
    rows = [
        (
            f"{segment_word(name):<10.10}{bar(part / whole, WIDTH - 15, empty=' ')}{100 * part / whole:4.0f}%\n",
            "$foreground",
        )
        for name, part in zip(SEGMENTS, sums, strict=True)
    ]
    return [_title(_("Where it goes")), *rows, ("\n", "")]


def _peers(session: Session) -> list[Part]:
    peers = session.peers()
    if not peers:
        return []
    rows: list[Part] = [_title(_("Peers"))]
    for peer in peers[:12]:
        sign, style = ("●", "$success") if peer.is_usable else ("✗", "$error")
        rtt = milliseconds(peer.rtt_ms / 1000) if peer.rtt_ms is not None else "–"
        rows.append((f"{sign} ", style))
        rows.append(
            (f"{short(peer.peer)}  {peer.num_experts:>4} ×  {rtt:>8}\n", "$foreground" if peer.is_usable else "$error")
        )
    if len(peers) > 12:
        rows.append((_("and {number} more").format(number=len(peers) - 12), "$text-muted"))
    return rows
