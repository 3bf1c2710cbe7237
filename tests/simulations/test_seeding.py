"""The limits that a fill is compared to, the shares, and the time line; the policy itself is in tests/node/seeding."""

import random

from shoal.protocol.ids import ExpertId, LayerId
from shoal.simulations.forecast.peers import Link
from shoal.simulations.seeding.limits import fill_limits
from shoal.simulations.seeding.lines import STEP_S, Line, homes
from shoal.simulations.seeding.shares import share_out
from shoal.simulations.seeding.timeline import timeline

PLACES = [(LayerId(0), ExpertId(number)) for number in range(60)]


def test_the_limit_is_the_largest_of_hub_uplinks_and_the_worst_downlink() -> None:
    links = [Link(up=1.0, down=10.0), Link(up=3.0, down=2.0)]
    limits = fill_limits([100, 30], links, links, peer_bytes=80, hub_s=7.0)
    assert (limits.hub_s, limits.uplinks_s, limits.downlinks_s, limits.least_s) == (7.0, 20.0, 15.0, 20.0)


def test_every_expert_has_its_replicas_on_different_machines_and_shares_follow_the_weights() -> None:
    holdings = share_out(PLACES, 3, [1.0, 1.0, 2.0, 2.0, 4.0], random.Random(0))
    shares = [len(holding.get(LayerId(0), ())) for holding in holdings]
    assert sum(shares) == 180
    assert shares == [18, 18, 36, 36, 72] or max(shares) == 60  # nobody can hold an expert twice
    assert shares[0] < shares[2] < shares[4]


def test_homes_of_a_seed_are_always_the_same() -> None:
    assert homes(5, seed=3) == homes(5, seed=3) != homes(5, seed=4)


def test_a_time_line_says_how_busy_the_lines_were() -> None:
    busy, idle = Line(100.0, passed={0: int(100 * STEP_S)}), Line(100.0)
    first, *_ = timeline([busy, idle], [idle], [STEP_S * 1.5])
    assert (first.up, first.down, first.num_full) == (0.5, 0.0, 0)
