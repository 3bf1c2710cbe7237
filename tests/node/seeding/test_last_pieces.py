"""The last pieces: a few slow ones are left to another source that is idle, and only then."""

from shoal.node.seeding.last_pieces import JUDGE_S, WORTH_FACTOR, LastPieces

A, B = b"a" * 32, b"b" * 32
INFINITY = float("inf")


def flying(left_s: float) -> LastPieces:
    """One piece will be here in so long; nothing else is to be begun, and another source would take a second."""
    last = LastPieces()
    last.note(0, 1.0)
    last.flies(A, int(left_s * 100), int(JUDGE_S * 100), JUDGE_S)
    return last


def test_the_slowest_piece_is_better_elsewhere_when_that_takes_half_as_long() -> None:
    assert flying(WORTH_FACTOR + 0.1).is_better_elsewhere(A)
    assert not flying(WORTH_FACTOR - 0.1).is_better_elsewhere(A)


def test_of_several_only_the_slowest_is_left() -> None:
    last = flying(20.0)
    last.flies(B, 3000, int(JUDGE_S * 100), JUDGE_S)
    assert last.is_better_elsewhere(B)
    assert not last.is_better_elsewhere(A)
    last.ends(B)
    assert last.is_better_elsewhere(A)


def test_nothing_is_left_while_there_is_more_to_begin() -> None:
    last = flying(20.0)
    last.note(1, 1.0)
    assert not last.is_better_elsewhere(A)
    assert last.are(1)


def test_nothing_is_left_to_a_source_that_is_busy_or_has_brought_nothing() -> None:
    last = flying(20.0)
    last.note(0, INFINITY)
    assert not last.is_better_elsewhere(A)
    assert not last.are(5)


def test_a_pace_is_judged_when_it_is_known() -> None:
    last = LastPieces()
    last.note(0, 1.0)
    last.flies(A, 10_000, 1, JUDGE_S - 1.0)
    assert not last.is_better_elsewhere(A)


def test_before_anything_is_known_nothing_is_the_last() -> None:
    assert not LastPieces().are(100)
