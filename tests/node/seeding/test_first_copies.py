"""First copies: as many as are passed on, and a slow giver keeps nobody waiting for many."""

from shoal.node.seeding.first_copies import (
    AHEAD_S,
    FEW_PIECES,
    FORGET_S,
    HELP_JUDGED_S,
    HELP_SHARE,
    START_PIECES,
    FirstCopies,
    Helping,
)

PIECE = 1000


def digest(number: int) -> bytes:
    return bytes([number]) * 32


def fetch_all(first: FirstCopies, now_s: float) -> int:
    """Fetch as many as there is room for."""
    count = 0
    while first.has_room:
        first.fetches(digest(100 + count), now_s)
        count += 1
    return count


def test_a_node_that_has_given_nothing_fetches_few() -> None:
    assert fetch_all(FirstCopies(PIECE), 0.0) == START_PIECES


def test_there_is_room_again_when_one_was_passed_on() -> None:
    first = FirstCopies(PIECE)
    fetch_all(first, 0.0)
    first.forget(first.unpassed(1.0)[:1])
    assert fetch_all(first, 1.0) == 1


def test_who_gives_fast_fetches_many_and_who_gives_slowly_one_at_a_time() -> None:
    fast, slow = FirstCopies(PIECE), FirstCopies(PIECE)
    for step in range(3):
        fast.count_given(step * PIECE, float(step))
        slow.count_given(step * PIECE, step * 100.0)
    assert fetch_all(fast, 2.0) == AHEAD_S
    assert fetch_all(slow, 200.0) == 1


def test_what_nobody_takes_is_not_waited_for_for_ever() -> None:
    first = FirstCopies(PIECE)
    fetch_all(first, 0.0)
    assert first.unpassed(FORGET_S + 1.0) == []
    assert first.has_room


def test_a_node_with_few_pieces_helps_nobody_and_one_with_many_until_too_much_was_in_vain() -> None:
    few, many = Helping(), Helping()
    few.wants(digest(0))
    for number in range(100):
        many.wants(digest(number))
    assert not few.has_room
    for number in range(int(HELP_SHARE * 100)):
        assert many.has_room
        many.begins(digest(number), 0.0)
    assert not many.has_room
    many.judge(lambda it: it == digest(0), 1.0)
    assert not many.has_room  # one was in vain, the others are not judged yet
    many.judge(lambda it: False, HELP_JUDGED_S + 1.0)
    assert many.has_room


def test_what_another_has_long_after_was_not_fetched_in_vain() -> None:
    helping = Helping()
    for number in range(20):
        helping.wants(digest(number))
    helping.begins(digest(0), 0.0)
    assert not helping.has_room
    helping.judge(lambda it: True, HELP_JUDGED_S + 1.0)
    assert helping.has_room


def test_what_others_have_counts_as_fetched_in_vain_at_once() -> None:
    helping = Helping()
    for number in range(100):
        helping.wants(digest(number))
    before = helping.num_left
    helping.spends()
    assert helping.num_left == before - 1 > 0


def test_nodes_with_few_pieces_keep_to_the_share_together() -> None:
    num_nodes, num_pieces = 100, 10
    budgets = []
    for node in range(num_nodes):
        helping = Helping(node / num_nodes)
        for number in range(num_pieces):
            helping.wants(digest(number))
        budgets.append(helping.num_left)
    assert sum(budgets) == round(HELP_SHARE * num_nodes * num_pieces)
    tiny = Helping(0.99)
    for number in range(FEW_PIECES - 1):
        tiny.wants(digest(number))
    assert tiny.num_left == 0
