"""The line above the keys: how the answer comes, and what the swarm did for it."""

from textual.widgets import Static

from shoal.client.chat.safe_text import printable
from shoal.client.translate import _, ngettext
from shoal.client.tui.session import Session


def answer_figures(session: Session) -> list[str]:
    """Tokens per second and time to the first token; empty before the first answer."""
    meter = session.meter
    if meter is None:
        return []
    rate = meter.tokens_per_s
    figures = [_("{rate:.1f} tok/s").format(rate=rate) if rate else _("– tok/s")]
    waiting = _("waiting for the first token")
    figures.append(waiting if meter.ttft_s is None else _("ttft {seconds:.2f} s").format(seconds=meter.ttft_s))
    return figures


def swarm_figures(session: Session) -> list[str]:
    """Peers in use, hedged and failed calls; empty without a swarm."""
    if session.swarm is None:
        return []
    usable = sum(peer.is_usable for peer in session.peers())
    return [
        ngettext("{number} peer", "{number} peers", usable).format(number=usable),
        _("{number} hedged").format(number=session.book.num_hedged),
        _("{number} failed over").format(number=session.book.num_failovers),
    ]


def connection_words(session: Session) -> str:
    """Who answers, or why nobody does."""
    if session.connection is not None:
        backend = session.connection.backend
        return printable(f"{backend.model_name} · {backend.where}")
    return _("not connected") if session.failure else _("connecting …")


class StatusLine(Static):
    """Redrawn by the application, four times a second at most."""

    def __init__(self) -> None:
        super().__init__("", markup=False)
        self._shown = ""

    def show(self, session: Session) -> None:
        """Draw what changed."""
        left = " · ".join([*answer_figures(session), *swarm_figures(session)])
        right = connection_words(session)
        room = max(0, self.size.width - 2 - len(left))
        words = left + (right.rjust(room) if len(right) + 2 <= room else "")
        if words != self._shown:
            self._shown = words
            self.update(words)
