"""The node on this machine: what it gives, what it is allowed to, and the button that stops it."""

from typing import ClassVar

from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.widgets import Button

from shoal.client.translate import N_, _, ngettext
from shoal.client.tui.bars import bar, milliseconds, short, size
from shoal.client.tui.panel import Panel, Part
from shoal.client.tui.screen import ShoalScreen
from shoal.client.tui.words import pause_word
from shoal.protocol.control import NodeState, NodeStatus
from shoal.protocol.errors import NodeNotRunning, ShoalError

BAR_WIDTH = 16

PAUSE_S = 2 * 3600.0
"""The shorter of the two pauses that the screen offers."""


class NodeScreen(ShoalScreen):
    """Screen 3."""

    MODE = "node"
    HELP = N_("The node that gives this machine's memory to the swarm. p pauses it at once, t for two hours.")
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("p", "pause", N_("Pause / resume"), id="node.pause"),
        Binding("t", "pause_for", N_("Pause 2 h"), id="node.pause_2h"),
    ]

    def __init__(self) -> None:
        super().__init__()
        self._status: NodeStatus | None = None

    def compose_body(self) -> ComposeResult:
        with VerticalScroll(id="node"):
            yield Panel(id="node-facts")
        yield Button(_("PAUSE"), id="pause", compact=False)

    def on_mount(self) -> None:
        self.query_one("#pause").display = False

    def show(self) -> None:
        self._ask("status")

    @on(Button.Pressed, "#pause")
    def action_pause(self) -> None:
        """Pause; resume if it is paused by the user."""
        is_paused = self._status is not None and self._status.state is NodeState.PAUSED
        self._ask("resume" if is_paused else "pause")

    def action_pause_for(self) -> None:
        self._ask("pause_for")

    @work(exclusive=True, group="node")
    async def _ask(self, what: str) -> None:
        node = self.session.node
        if node is None:
            return self._draw_none()
        try:
            if what == "pause":
                self._draw(await node.pause(None))
            elif what == "pause_for":
                self._draw(await node.pause(PAUSE_S))
            elif what == "resume":
                self._draw(await node.resume())
            else:
                self._draw(await node.status())
        except NodeNotRunning:
            self._draw_none()
        except ShoalError as error:
            self._status = None
            self.query_one("#node-facts", Panel).set_parts([(f"✗ {error}", "$error")])

    def _draw_none(self) -> None:
        self._status = None
        self.query_one("#pause").display = False
        self.query_one("#node-facts", Panel).set_parts(
            [
                (_("No node of yours runs on this machine.") + "\n\n", "bold $foreground"),
                (
                    _("A node holds some experts of the model and answers for others; it needs a gigabyte to spare.")
                    + "\n",
                    "$foreground",
                ),
                (_("To give one:") + "  ", "$text-muted"),
                ("shoal node --join TOKEN", "bold $primary"),
            ]
        )

    def _draw(self, status: NodeStatus) -> None:
        self._status = status
        button = self.query_one("#pause", Button)
        button.display = True
        is_paused = status.state is NodeState.PAUSED
        button.label = _("RESUME") if is_paused else _("PAUSE")
        button.variant = "success" if is_paused else "warning"
        facts = [*self._state(status), *_holding(status), *_work(status), *_traffic(status), *_limits(status)]
        self.query_one("#node-facts", Panel).set_parts(facts)

    def _state(self, status: NodeStatus) -> list[Part]:
        signs = {NodeState.SERVING: ("●", "$success"), NodeState.PAUSED: ("‖", "$warning")}
        sign, style = signs.get(status.state, ("◌", "$warning"))
        states = {
            NodeState.STARTING: _("starting"),
            NodeState.SERVING: _("serving"),
            NodeState.PAUSED: _("paused"),
            NodeState.DRAINING: _("leaving"),
        }
        since_s = max(0.0, self.session.clocks.unix_s() - status.started_at_s)
        words = f"{sign} {states[status.state]}"
        if status.pause_reason is not None:
            words += f" · {pause_word(status.pause_reason)}"
        if status.paused_until_s is not None:
            left = max(0.0, status.paused_until_s - self.session.clocks.unix_s())
            words += " · " + _("{minutes:.0f} min left").format(minutes=left / 60)
        up = _("up {hours:.1f} h").format(hours=since_s / 3600)
        return [
            (words, f"bold {style}"),
            (f"   {status.name} · {short(status.peer)} · {up} · {status.version}\n\n", "$text-muted"),
        ]


def _row(name: str, value: str) -> list[Part]:
    return [(f"{name:<14.14}", "$text-muted"), (f"{value}\n", "$foreground")]


def _holding(status: NodeStatus) -> list[Part]:
    layers = "  ".join(f"L{each.layer}: {each.experts}" for each in status.holding[:6])
    more = " …" if len(status.holding) > 6 else ""
    experts = ngettext("{number} expert", "{number} experts", status.num_experts).format(number=status.num_experts)
    return [
        *_row(_("holds"), f"{experts} · {size(status.resident_bytes)} · {status.model} · {status.weight_format}"),
        *_row("", layers + more),
    ]


def _work(status: NodeStatus) -> list[Part]:
    clients = ngettext("{number} client", "{number} clients", status.num_clients).format(number=status.num_clients)
    return [
        *_row(
            _("given"),
            _("{tokens:.1f} tokens · {rows} rows").format(tokens=status.tokens_given, rows=status.rows_computed),
        ),
        *_row(
            _("served"),
            _("{served} requests, {refused} refused").format(
                served=status.requests_served, refused=status.requests_refused
            ),
        ),
        *_row(_("queue"), f"{milliseconds(status.queue_s)} · {clients} · {status.kernel}"),
    ]


def _traffic(status: NodeStatus) -> list[Part]:
    limits = status.limits
    return [
        *_flow(_("up"), status.bytes_up, status.up_bytes_per_s, limits.up_bytes_per_s),
        *_flow(_("down"), status.bytes_down, status.down_bytes_per_s, limits.down_bytes_per_s),
        *_share(_("this month"), status.month_bytes, limits.monthly_bytes),
    ]


def _limits(status: NodeStatus) -> list[Part]:
    return [
        *_share(_("memory"), status.resident_bytes, status.limits.ram_bytes),
        *_row(_("threads"), str(status.limits.threads)),
    ]


def _flow(name: str, total: int, rate: float, cap: int | None) -> list[Part]:
    """Bytes in all and a second, against the cap if there is one."""
    words = f"{size(total)} · {size(rate)}/s"
    if cap is None:
        return _row(name, words + " · " + _("no cap"))
    return _gauge(name, f"{words} {_('of')} {size(cap)}/s", rate / cap if cap else 1.0)


def _share(name: str, used: int, cap: int | None) -> list[Part]:
    if cap is None:
        return _row(name, f"{size(used)} · " + _("no cap"))
    return _gauge(name, f"{size(used)} {_('of')} {size(cap)}", used / cap if cap else 1.0)


def _gauge(name: str, value: str, share: float) -> list[Part]:
    """A value and how much of its cap that is."""
    style = "$success" if share < 0.75 else "$warning" if share < 1 else "$error"
    return [
        (f"{name:<14.14}", "$text-muted"),
        (f"{value:<36}", "$foreground"),
        (f"{bar(share, BAR_WIDTH)} {100 * share:3.0f} %\n", style),
    ]
