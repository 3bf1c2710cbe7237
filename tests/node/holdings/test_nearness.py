"""Whether peers are near: of whom it is asked, and what their answers mean."""

from dataclasses import replace

from shoal.experts.family import model_spec
from shoal.node.holdings.nearness import NUM_ASKED, layout_for, reads_s, whom_to_ask
from shoal.node.holdings.placement import Layout
from shoal.protocol.ids import ExpertId, LayerId, PeerId
from shoal.protocol.records import HolderRecord
from shoal.simulations.forecast.deepseek_v3 import DEEPSEEK_V3

ME = PeerId("me")
RECORD = HolderRecord(
    PeerId("a"), b"r" * 32, LayerId(1), frozenset({ExpertId(1)}), 1, 1, 1, 0, 0, ("/ip4/10.0.0.1/tcp/1/p2p/a",), 1, 0.0
)


def named(name: str, zone: str = "") -> HolderRecord:
    return replace(RECORD, peer=PeerId(name), zone=zone, addresses=(f"/ip4/10.0.0.1/tcp/1/p2p/{name}",))


def draw() -> float:
    return 0.5


def test_a_room_is_near_and_a_town_is_not() -> None:
    needed_s = reads_s(model_spec(DEEPSEEK_V3).router, 23_000_000)
    assert 0.004 < needed_s < 0.005
    assert layout_for([0.0003, 0.0005, 0.002], needed_s) is Layout.MANY_LAYERS
    assert layout_for([0.0003, 0.0005, 0.009], needed_s) is Layout.FEW_LAYERS


def test_who_knows_nothing_of_the_network_takes_it_for_wide() -> None:
    assert layout_for([], 1.0) is Layout.FEW_LAYERS
    assert layout_for([None, None], 1.0) is Layout.FEW_LAYERS


def test_one_neighbour_among_peers_that_do_not_answer_makes_no_room() -> None:
    assert layout_for([0.0003, None, None], 0.004) is Layout.FEW_LAYERS
    assert layout_for([0.0003, 0.0004, None], 0.004) is Layout.MANY_LAYERS


def test_the_own_zone_is_asked_where_it_has_a_name_and_never_oneself() -> None:
    found = {LayerId(1): [named("a", "here"), named("b", "there"), named("c"), named("me", "here")]}
    asked = whom_to_ask(found, ME, "here", (), draw)
    assert asked == [("/ip4/10.0.0.1/tcp/1/p2p/a",)]
    assert len(whom_to_ask(found, ME, "", (), draw)) == 3


def test_those_whom_we_joined_by_are_asked_unless_they_say_that_they_are_elsewhere() -> None:
    found = {LayerId(1): [named("a", "here"), named("b", "there")]}
    words = ["/ip4/10.0.0.9/tcp/9/p2p/seed", "/ip4/10.0.0.9/tcp/9/p2p/b", "/ip4/10.0.0.9/tcp/9/p2p/me"]
    asked = whom_to_ask(found, ME, "here", words, draw)
    assert asked == [("/ip4/10.0.0.1/tcp/1/p2p/a",), ("/ip4/10.0.0.9/tcp/9/p2p/seed",)]


def test_of_many_some_are_asked_each_once() -> None:
    found = {LayerId(layer): [named(f"peer{number}") for number in range(99)] for layer in (1, 2)}
    asked = whom_to_ask(found, ME, "", (), draw)
    assert len(asked) == len(set(asked)) == NUM_ASKED
