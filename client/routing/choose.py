"""Which replica answers: pure functions from who holds what, and what each costs, to a plan.

Fewest holders first, because a layer waits for its slowest holder (DESIGN §1: 8 to 2 holders per layer take the median
token from 4.9 to 3.1 s in simulation); among equals the cheapest. Knows no network, no clock, no randomness.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from shoal.protocol.ids import ExpertId, PeerId

Held = Mapping[PeerId, frozenset[ExpertId]]
"""Experts of one layer by holder."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Who computes what; each needed expert is in exactly one place."""

    shares: Mapping[PeerId, tuple[ExpertId, ...]]
    """Experts by holder, ascending."""
    uncovered: tuple[ExpertId, ...]
    """Experts that no candidate holds."""
    cold: Mapping[PeerId, tuple[ExpertId, ...]] = field(default_factory=dict)
    """What holders read from their disks first, the last resort; one may be asked for other experts beside."""

    @property
    def peers(self) -> frozenset[PeerId]:
        """All that are asked."""
        return frozenset({*self.shares, *self.cold})


def choose(needed: Iterable[ExpertId], holders: Held, cost: Mapping[PeerId, float]) -> Plan:
    """Cover `needed` with few and cheap holders (greedy set cover, within ln(n) of the fewest).

    `cost`: expected seconds of an exchange per holder; ties go to the lower peer id, so that equal inputs give equal
    plans.
    """
    left = set(needed)
    shares: dict[PeerId, tuple[ExpertId, ...]] = {}
    while left:
        best = min(holders, key=lambda peer: (-len(holders[peer] & left), cost[peer], peer), default=None)
        if best is None or not holders[best] & left:
            break
        shares[best] = tuple(sorted(holders[best] & left))
        left -= holders[best]
    return Plan(shares, tuple(sorted(left)))


def choose_in_tiers(needed: Iterable[ExpertId], tiers: Iterable[Held], cost: Mapping[PeerId, float]) -> Plan:
    """Cover `needed` from the first tier as far as it goes, the rest from the next, and so on.

    A holder in a lower tier is asked only for experts that no higher tier has. Tiers have no holder in common; those
    that nothing is left for are not looked at.
    """
    shares: dict[PeerId, tuple[ExpertId, ...]] = {}
    uncovered = tuple(needed)
    for holders in tiers:
        plan = choose(uncovered, holders, cost)
        shares |= plan.shares
        uncovered = plan.uncovered
        if not uncovered:
            break
    return Plan(shares, tuple(sorted(uncovered)))


def choose_disks(
    needed: Iterable[ExpertId], tiers: Sequence[Held], cost: Mapping[PeerId, float], read: Mapping[PeerId, float]
) -> Plan:
    """Who reads which experts from disk: each where it is there soonest, given what that disk has to read already.

    Disks read side by side, and reading takes longer than an exchange: so not the fewest holders, but list scheduling
    (within 2 - 1/m of the shortest; Graham 1966), those with the fewest disks first. Tiers as in `choose_in_tiers`.
    `read`: expected seconds of reading one expert.
    """
    asked: dict[PeerId, tuple[ExpertId, ...]] = {}
    uncovered: list[ExpertId] = []
    candidates = {expert: _first_tier_with(expert, tiers) for expert in needed}
    for expert in sorted(candidates, key=lambda each: (len(candidates[each]), each)):
        soonest = min(
            candidates[expert],
            key=lambda peer: (cost[peer] + read[peer] * (len(asked.get(peer, ())) + 1), peer),
            default=None,
        )
        if soonest is None:
            uncovered.append(expert)
        else:
            asked[soonest] = (*asked.get(soonest, ()), expert)
    return Plan({peer: tuple(sorted(experts)) for peer, experts in asked.items()}, tuple(uncovered))


def _first_tier_with(expert: ExpertId, tiers: Sequence[Held]) -> list[PeerId]:
    """Who has an expert in the first tier in which anybody has it."""
    found = ([peer for peer, experts in tier.items() if expert in experts] for tier in tiers)
    return next(filter(None, found), [])


def with_disks(plan: Plan, doubtful: Collection[PeerId], hoped_for: Collection[ExpertId], last: Plan) -> Plan:
    """A plan in which disks do what nobody else is left for: what it leaves uncovered and what it asks of `doubtful`
    holders, but for experts that are `hoped_for` of others. `last`: which disks would do what; what is on none of them
    stays as it was."""
    hopeless = {*plan.uncovered, *(expert for peer in doubtful for expert in plan.shares.get(peer, ()))}
    hopeless -= {*hoped_for, *last.uncovered}
    shares = dict[PeerId, tuple[ExpertId, ...]]()
    for peer, share in plan.shares.items():
        if kept := tuple(expert for expert in share if peer not in doubtful or expert not in hopeless):
            shares[peer] = kept
    cold = {peer: tuple(expert for expert in share if expert in hopeless) for peer, share in last.shares.items()}
    return Plan(
        shares,
        tuple(expert for expert in plan.uncovered if expert not in hopeless),
        {peer: share for peer, share in cold.items() if share},
    )
