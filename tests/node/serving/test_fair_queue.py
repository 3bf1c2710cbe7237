"""Who waits is served by turns of peers: many requests of one delay no other, and nothing is lost or served twice."""

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.node.serving.fair_queue import FairQueue
from shoal.protocol.ids import PeerId


@dataclass(eq=False)
class Item:
    """Something of a peer."""

    peer: PeerId
    number: int


def item(peer: str, number: int = 0) -> Item:
    return Item(PeerId(peer), number)


def drained(queue: FairQueue[Item]) -> list[Item]:
    return [queue.pop() for _ in range(len(queue))]


def test_a_newcomer_waits_for_one_request_of_the_hog_and_not_for_all() -> None:
    queue: FairQueue[Item] = FairQueue()
    for number in range(100):
        queue.push(PeerId("hog"), 1.0, item("hog", number))
    queue.pop()
    queue.push(PeerId("new"), 1.0, item("new"))
    assert [each.peer for each in drained(queue)][:3].count(PeerId("new")) == 1


def test_turns_are_by_cost_and_not_by_number() -> None:
    queue: FairQueue[Item] = FairQueue()
    for number in range(40):
        queue.push(PeerId("small"), 1.0, item("small", number))
        queue.push(PeerId("large"), 4.0, item("large", number))
    first = [each.peer for each in drained(queue)[:25]]
    assert 3 <= first.count(PeerId("small")) / first.count(PeerId("large")) <= 5


def test_a_peers_own_requests_keep_their_order() -> None:
    queue: FairQueue[Item] = FairQueue()
    for number in range(50):
        queue.push(PeerId("a"), 1.0 + number % 3, item("a", number))
    assert [each.number for each in drained(queue)] == list(range(50))


def test_an_empty_queue_has_nothing_to_give() -> None:
    queue: FairQueue[Item] = FairQueue()
    with pytest.raises(IndexError):
        queue.pop()


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.floats(0.1, 9), st.sampled_from("ppppod")), max_size=200))
def test_everything_comes_out_once_but_what_was_taken_out(steps: list[tuple[str, float, str]]) -> None:
    queue: FairQueue[Item] = FairQueue()
    waiting: list[Item] = []
    for number, (peer, cost, what) in enumerate(steps):
        if what == "p":
            waiting.append(item(peer, number))
            queue.push(waiting[-1].peer, cost, waiting[-1])
        elif what == "o" and waiting:
            waiting.remove(queue.pop())
        elif what == "d" and waiting:
            queue.discard(waiting.pop(len(waiting) // 2))
        assert len(queue) == len(waiting)
        assert list(queue) == waiting
    assert sorted(each.number for each in drained(queue)) == sorted(each.number for each in waiting)
    assert not queue._heap
    assert not queue._ends
