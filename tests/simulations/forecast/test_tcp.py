"""What TCP adds, by hand.

Run: pytest tests/simulations/forecast/test_tcp.py
"""

from dataclasses import replace

import pytest

from shoal.protocol.ids import PeerId
from shoal.simulations.forecast.forecast import Tally, forecast_prefill, forecast_streams
from shoal.simulations.forecast.layer_time import LOSSES, SHARED_CORES, Conditions
from shoal.simulations.forecast.peers import Link, TrunkHost
from shoal.simulations.forecast.shared_cores import SharedMachine
from shoal.simulations.forecast.tcp import (
    INITIAL_WINDOW_BYTES,
    Windows,
    last_packet_bytes,
    num_packets,
    repair_s,
    wire_bytes,
)
from tests.simulations.forecast.swarms import ENDLESS, FREE, parts_swarm, peer

HOLDER, LAYERS = PeerId("holder"), 58


def test_every_packet_has_headers() -> None:
    assert wire_bytes(1) == 53
    assert wire_bytes(1448) == 1500
    assert wire_bytes(1449) == 1449 + 104
    assert [num_packets(wire_bytes(size)) for size in (1, 1448, 1449)] == [1, 1, 2]
    assert last_packet_bytes(152) == 152
    assert last_packet_bytes(100_000) == 1500


def test_a_frame_waits_for_a_window_that_doubles_each_round_trip() -> None:
    windows = Windows()
    assert windows.has_room(HOLDER, True, INITIAL_WINDOW_BYTES)
    assert windows.wait_s(HOLDER, True, INITIAL_WINDOW_BYTES, 0.1, ENDLESS) == 0.0
    assert windows.wait_s(HOLDER, True, 7 * INITIAL_WINDOW_BYTES, 0.1, ENDLESS) == pytest.approx(0.2)  # 1, 2, 4
    assert windows.wait_s(HOLDER, True, 7 * INITIAL_WINDOW_BYTES, 0.1, ENDLESS) == pytest.approx(0.1)  # 4, 3
    assert windows.wait_s(HOLDER, True, 7 * INITIAL_WINDOW_BYTES, 0.1, ENDLESS) == 0.0
    assert not windows.has_room(HOLDER, False, 2 * INITIAL_WINDOW_BYTES)  # the way back has a window of its own


def test_a_slow_link_leaves_no_pause_between_rounds() -> None:
    rate = INITIAL_WINDOW_BYTES / 0.1
    assert Windows().wait_s(HOLDER, True, 7 * INITIAL_WINDOW_BYTES, 0.1, rate) == 0.0
    assert Windows().wait_s(HOLDER, True, 2 * INITIAL_WINDOW_BYTES, 0.3, rate) == pytest.approx(0.2)


def test_a_lost_packet_is_missed_after_the_senders_timer_which_doubles() -> None:
    assert repair_s(0.05, 1) == pytest.approx(0.25)
    assert repair_s(0.05, 2) == pytest.approx(0.75)


def test_a_prompt_on_a_connection_that_was_idle_pays_for_slow_start_and_decoding_does_not() -> None:
    swarm = replace(parts_swarm([peer(0, 0.02)]), conditions=Conditions())
    assert forecast_streams(swarm, 1, 0, Tally()).token_ms == pytest.approx(LAYERS * 20, rel=1e-6)
    # there 264 windows of 14,480 bytes, which 9 rounds carry (511), back 526, which 10 do (1,023): 8 and 9 waits; in
    # the second layer one more each way, for a window of 256 is less than 264, and one of 512 less than 526
    prompt = forecast_prefill(swarm, 256, 0, Tally())
    assert prompt.time_s == pytest.approx((LAYERS + 8 + 9 + 1 + 1) * 0.02, rel=1e-6)


def test_losses_cost_repairs_that_a_replica_cuts_short() -> None:
    lossy = Conditions(loss=0.01)
    alone = replace(parts_swarm([peer(0, 0.02)]), conditions=lossy)
    said = forecast_streams(alone, 1, 0, Tally())
    packets = 10 + 20  # of 14,564 bytes there and 28,852 back
    share = 1 - 0.99 ** (packets + 1)
    assert said.shares[LOSSES] * said.token_ms == pytest.approx(LAYERS * share * 220, rel=0.25)
    view = alone.layers[0]
    held = {**view.held, peer(1).name: view.held[peer(0).name]}
    both = replace(view, held=held, cost={**view.cost, peer(1).name: 0.03})
    hedged = replace(alone, layers=[both] * LAYERS, peers=[*alone.peers, peer(1, 0.03)])
    assert forecast_streams(hedged, 1, 0, Tally()).token_ms < said.token_ms


def test_links_hand_packets_on_whole() -> None:
    slow = Link(1e6, 1e6)
    swarm = parts_swarm([peer(0, link=slow)], TrunkHost(slow, FREE, 10**12))
    fluid_ms = forecast_streams(swarm, 1, 0, Tally()).token_ms
    packets = forecast_streams(replace(swarm, conditions=Conditions()), 1, 0, Tally())
    headers_ms = LAYERS * (11 + 20) * 52 / 1e3
    second_links_ms = LAYERS * 2 * 1500 / 1e3
    assert packets.token_ms == pytest.approx(fluid_ms + headers_ms + second_links_ms, rel=0.01)


def test_nodes_of_one_machine_wait_for_its_cores() -> None:
    peers = [peer(place, call_s=0.003) for place in range(8)]
    apart = replace(parts_swarm(peers), conditions=Conditions())
    calls = forecast_streams(apart, 1, 0, Tally()).holders_per_layer
    one = replace(apart, conditions=Conditions(shared=SharedMachine(1)))
    said = forecast_streams(one, 1, 0, Tally())
    assert forecast_streams(apart, 1, 0, Tally()).token_ms == pytest.approx(LAYERS * 3, rel=1e-6)
    assert said.token_ms == pytest.approx(LAYERS * calls * 3, rel=1e-6)
    assert said.shares[SHARED_CORES] == pytest.approx(1 - 1 / calls, rel=1e-6)
