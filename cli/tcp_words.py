"""What a client is told when this machine's TCP makes its exchanges slow: once, and only if a holder is elsewhere."""

import sys
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from shoal.client.translate import N_, _
from shoal.protocol.net.tcp import (
    PACED,
    PROC,
    TcpTrouble,
    leaves_this_machine,
    read_tcp_kernel,
    tcp_advice,
    unpaced_control,
)

if TYPE_CHECKING:
    from shoal.client.routing.peers import PeerSnapshot

DIRECT = "direct"
"""The channel whose sockets are ours; libp2p's are its own program's and have what the kernel gives them."""

WORDS = {
    TcpTrouble.PACED: N_("TCP's congestion control here makes a small exchange take 1.6 round trips."),
    TcpTrouble.RESTARTS: N_(
        "TCP's window shrinks in idle moments here: what is said after a pause takes 3 round trips."
    ),
}


def tcp_words(peers: "Iterable[PeerSnapshot]", channel: str, proc: Path = PROC) -> tuple[str, ...]:
    """What costs round trips here, a sentence each, and the one command that cures it; empty: nothing does, or no peer
    is elsewhere. proc: where the kernel says its settings."""
    if not leaves_this_machine(chain.from_iterable(peer.addresses for peer in peers)):
        return ()
    sets_own = channel == DIRECT and not unpaced_control().startswith(PACED)
    advice = tcp_advice(read_tcp_kernel(proc), sets_own=sets_own)
    if advice is None:
        return ()
    return (*(_(WORDS[trouble]) for trouble in advice.troubles), _("Try: {command}").format(command=advice.command))


def warn_of_tcp(peers: "Iterable[PeerSnapshot]", channel: str, proc: Path = PROC) -> None:
    """Say them on standard error."""
    *troubles, command = tcp_words(peers, channel, proc) or ("",)
    for trouble in troubles:
        print(f"shoal: {trouble}", file=sys.stderr)
    if command:
        print(f"       {command}", file=sys.stderr)
