"""Names of states as a user reads them: translated where they are shown, so that no screen spells them twice."""

from shoal.client.routing.peers import Breaker
from shoal.client.translate import _
from shoal.protocol.control import PauseReason


def segment_word(segment: str) -> str:
    """A name of `event_book.SEGMENTS`."""
    words = {
        "attention": _("attention"),
        "route": _("route"),
        "wire": _("wire"),
        "expert": _("expert"),
        "wait": _("waiting"),
        "other": _("other"),
    }
    return words[segment]


def breaker_word(breaker: Breaker) -> str:
    """Whether a holder is asked."""
    words = {
        Breaker.CLOSED: _("in use"),
        Breaker.PAUSED: _("paused"),
        Breaker.BANNED: _("banned"),
        Breaker.DRAINING: _("leaving"),
        Breaker.OFFLINE: _("offline"),
    }
    return words[breaker]


def breaker_sign(breaker: Breaker) -> str:
    """The same as a sign."""
    signs = {Breaker.CLOSED: "●", Breaker.PAUSED: "◐", Breaker.BANNED: "⊘", Breaker.DRAINING: "◔", Breaker.OFFLINE: "✗"}
    return signs[breaker]


def breaker_style(breaker: Breaker) -> str:
    """The same as a colour."""
    if breaker is Breaker.CLOSED:
        return "$success"
    return "$warning" if breaker in (Breaker.PAUSED, Breaker.DRAINING) else "$error"


def pause_word(reason: PauseReason) -> str:
    """Why a node works for nobody."""
    words = {
        PauseReason.USER: _("by you"),
        PauseReason.SCHEDULE: _("by the schedule"),
        PauseReason.INPUT: _("you use the machine"),
        PauseReason.INPUT_UNKNOWN: _("nothing tells whether you use the machine"),
        PauseReason.BATTERY: _("on battery"),
        PauseReason.TEMPERATURE: _("too warm"),
        PauseReason.POWER: _("too much power"),
        PauseReason.MONTHLY_CAP: _("the month's transfer is used up"),
        PauseReason.METERED: _("metered connection"),
        PauseReason.PROGRAM: _("a program you named runs"),
        PauseReason.LOAD: _("others need the processors"),
    }
    return words[reason]
