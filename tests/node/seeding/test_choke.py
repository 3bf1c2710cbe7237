"""Turns: a few at a time, a piece each while others wait, and everybody comes to his turn."""

import random
from collections import Counter

import pytest

from shoal.node.seeding.choke import (
    MAX_TURNS,
    MAX_WAITING,
    MIN_TURNS,
    RESERVED_S,
    TURN_IDLE_S,
    TURN_S,
    WAITING_GRACE_S,
    Choke,
)
from shoal.protocol.errors import Busy
from shoal.protocol.ids import PeerId

PIECE = 1000
A, B, C, D, E = map(PeerId, "abcde")


def enters(choke: Choke, peer: PeerId, now_s: float) -> bool:
    try:
        choke.enter(peer, now_s)
    except Busy:
        return False
    return True


def test_one_that_is_alone_takes_piece_after_piece() -> None:
    choke = Choke(PIECE)
    for step in range(100):
        assert enters(choke, A, step * 0.1)
        choke.count(A, PIECE // 3, step * 0.1)


def test_no_more_than_the_turns_are_served_at_a_time() -> None:
    choke = Choke(PIECE, num_turns=2)
    assert [enters(choke, peer, 0.0) for peer in (A, B, C, D)] == [True, True, False, False]
    assert (choke.num_turns, choke.num_waiting) == (2, 2)


def test_a_turn_ends_with_its_piece_when_somebody_waits_and_the_first_in_the_line_is_next() -> None:
    choke = Choke(PIECE, num_turns=1)
    assert enters(choke, A, 0.0)
    assert not enters(choke, B, 0.1)
    assert not enters(choke, C, 0.2)
    choke.count(A, PIECE - 1, 0.3)
    assert enters(choke, A, 0.3)  # in mid-piece nobody is interrupted
    choke.count(A, 1, 0.4)
    assert not enters(choke, A, 0.4)
    assert not enters(choke, C, 0.5)
    assert enters(choke, B, 0.6)
    choke.count(B, PIECE, 0.7)
    assert not enters(choke, B, 0.8)
    assert not enters(choke, A, 0.8)  # behind C, who has waited since before
    assert enters(choke, C, 0.9)


def test_who_falls_silent_loses_the_turn() -> None:
    choke = Choke(PIECE, num_turns=1)
    assert enters(choke, A, 0.0)
    assert not enters(choke, B, TURN_IDLE_S)
    assert enters(choke, B, TURN_IDLE_S + 0.01)


def test_a_free_turn_waits_for_who_is_next_but_not_for_long() -> None:
    choke = Choke(PIECE, num_turns=1)
    assert enters(choke, A, 0.0)
    assert not enters(choke, B, 0.0)
    choke.count(A, PIECE, 1.0)
    assert not enters(choke, A, 1.0)
    assert not enters(choke, C, 1.0 + RESERVED_S)
    assert enters(choke, C, 1.01 + RESERVED_S)


def test_who_does_not_come_back_loses_the_place() -> None:
    choke = Choke(PIECE, num_turns=1)
    assert enters(choke, A, 0.0)
    assert not enters(choke, B, 0.0)
    choke.count(A, PIECE, 1.0)
    later_s = 2.0 + WAITING_GRACE_S
    for step in range(int(later_s) + 1):
        assert choke.num_waiting <= 1
        if not enters(choke, A, float(step + 1)):
            break
    assert enters(choke, A, later_s + TURN_IDLE_S)
    assert choke.num_waiting == 0


def test_the_line_has_an_end() -> None:
    choke = Choke(PIECE, num_turns=1)
    assert enters(choke, A, 0.0)
    for number in range(2 * MAX_WAITING):
        assert not enters(choke, PeerId(f"p{number}"), 0.0)
    assert choke.num_waiting == MAX_WAITING


@pytest.mark.parametrize(("piece_s", "most_turns"), [(TURN_S / 20, MAX_TURNS), (TURN_S * 10, MIN_TURNS)])
def test_a_fast_uplink_serves_many_at_a_time_and_a_slow_one_few(piece_s: float, most_turns: int) -> None:
    choke, peers, step_s = Choke(PIECE), [PeerId(f"p{number}") for number in range(MAX_TURNS + 4)], piece_s / 100
    for step in range(3000):
        for peer in peers:
            if enters(choke, peer, step * step_s):
                choke.count(peer, PIECE // 100, step * step_s)
    assert choke.most_turns == most_turns


@pytest.mark.parametrize("seed", range(5))
def test_all_who_come_back_as_told_get_about_as_much(seed: int) -> None:
    """Twenty peers at one seeder; each takes a tenth of a piece a step while it has a turn."""
    choke, draw, given = Choke(PIECE), random.Random(seed), Counter[PeerId]()
    peers = [PeerId(f"p{number}") for number in range(20)]
    next_s = dict.fromkeys(peers, 0.0)
    for step in range(20_000):
        now_s = step * 0.05
        for peer in draw.sample(peers, len(peers)):
            if next_s[peer] > now_s:
                continue
            try:
                choke.enter(peer, now_s)
            except Busy as busy:
                next_s[peer] = now_s + busy.retry_after_s
            else:
                choke.count(peer, PIECE // 10, now_s)
                given[peer] += PIECE // 10
        assert choke.num_turns <= MAX_TURNS
    assert min(given.values()) > 0.7 * max(given.values())
