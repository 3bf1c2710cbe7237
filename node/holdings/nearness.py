"""How near a node's peers are, and so in which layers its groups should lie. Knows no sockets: round trips come in.

A machine reads a layer's experts from memory one after another, so one holder of all that a token asks takes `top_k`
reads, four that share it two or three. Where the slowest of the peers answers within that time the reads are what a
token waits for; where it does not, waiting for the slowest of several costs more than they do (docs/adr/0044).
"""

from collections.abc import Callable, Iterable, Sequence

from shoal.experts.specs import RouterSpec
from shoal.node.holdings.placement import Layout
from shoal.node.holdings.survey import Found
from shoal.protocol.ids import PeerId

READ_BYTES_PER_S = 40e9
"""What an ordinary desktop reads from its memory: two channels of DDR4-3200 at 80 %."""

NUM_ASKED = 8
"""Peers whose round trips are measured."""

MIN_READS_S = 0.0001
"""Nobody is nearer than this: for models whose experts are read sooner nothing is measured."""


def reads_s(router: RouterSpec, expert_bytes: int) -> float:
    """What one machine takes to read all experts that a token asks of a layer."""
    return router.top_k * expert_bytes / READ_BYTES_PER_S


def whom_to_ask(
    found: Found, me: PeerId, zone: str, bootstrap: Iterable[str], draw: Callable[[], float]
) -> list[tuple[str, ...]]:
    """Addresses of up to `NUM_ASKED` peers, some of each: of our zone where it has a name, and of those whom we joined
    by. bootstrap: multiaddrs; draw: a number in 0..1."""
    records = {record.peer: record for layer in found.values() for record in layer if record.peer != me}
    near = {peer: record.addresses for peer, record in records.items() if not zone or record.zone == zone}
    for address in bootstrap:
        peer = PeerId(address.rpartition("/p2p/")[2])
        if peer != me and (peer not in records or peer in near):
            near[peer] = (*near.get(peer, ()), address)
    known = [addresses for _, addresses in sorted(near.items()) if addresses]
    return [addresses for _, addresses in sorted((draw(), addresses) for addresses in known)][:NUM_ASKED]


def layout_for(round_trips_s: Sequence[float | None], needed_s: float) -> Layout:
    """Many layers, if most of those asked answered and all of these sooner than `needed_s` (`reads_s`). None: no
    answer."""
    answered = [each for each in round_trips_s if each is not None]
    if 2 * len(answered) <= len(round_trips_s) or max(answered) > needed_s:
        return Layout.FEW_LAYERS
    return Layout.MANY_LAYERS
