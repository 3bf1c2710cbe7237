"""What an empty conversation shows: the shoal, and how the connection is coming along."""

from shoal.client.chat.safe_text import printable
from shoal.client.translate import _, ngettext
from shoal.client.tui.panel import Panel
from shoal.client.tui.session import Session

FISH = """\
        ><>    ><>
   ><>     ><>     ><>
      ><>     ><>
   ><>     ><>    ><>
        ><>    ><>"""


class Welcome(Panel):
    """Gone with the first message."""

    def show(self, session: Session) -> None:
        """Draw the state of the connection."""
        parts = [
            (FISH, "$primary"),
            ("\n\nshoal", "bold $foreground"),
            ("  " + _("many small fish that move as one") + "\n\n", "$text-muted"),
            *self._state(session),
        ]
        self.set_parts(parts)

    def _state(self, session: Session) -> list[tuple[str, str]]:
        if session.failure is not None:
            return [
                ("✗ " + printable(str(session.failure)) + "\n", "bold $error"),
                (_("Press ctrl+r to try again, ctrl+q to leave."), "$foreground"),
            ]
        if session.connection is None:
            return [("◌ " + (session.opening or _("connecting …")), "$warning")]
        coverage = session.coverage()
        if coverage is None:
            backend = session.connection.backend
            words = _("{model} at {where}").format(model=backend.model_name, where=backend.where)
            return [("● " + printable(words), "$success")]
        usable = sum(peer.is_usable for peer in session.peers())
        held = ngettext("{number} peer holds", "{number} peers hold", usable).format(number=usable)
        experts = _("{held} {experts} experts, {replicas:.1f} times each").format(
            held=held, experts=coverage.num_experts, replicas=coverage.mean_replicas
        )
        return [("● " + experts, "$success")]
