"""The time budget of an exchange adds up to the whole, comes from real processes, and leaves no mark behind."""

import asyncio
import json
from typing import Any

import pytest

from shoal.protocol.events import DispatchSent, Event, ReplyReceived
from shoal.protocol.frames import FrameDecoder
from shoal.protocol.identity import Identity
from shoal.protocol.ids import LayerId
from shoal.simulations.bench.budget import bench_budget, table
from shoal.simulations.bench.budget_parts import KERNEL, NODE_MOMENTS, PARTS, Cut, Where, cut, ordered, spent_on_parts
from shoal.simulations.bench.marks import Spot, marking
from shoal.simulations.bench.os_trace import OsTimes

ONE, TWO = (Identity.from_seed(bytes([seed]) * 32).peer for seed in (1, 2))
LAYER = LayerId(0)


class Adder:
    """Something to mark."""

    def add(self, one: int, other: int) -> int:
        return one + other


def test_marks_are_told_in_order_and_gone_afterwards() -> None:
    plain = Adder.add
    with marking([Spot(Adder, "add", before="begins", after="ends")]) as marks:
        assert Adder().add(2, 3) == 5
        marks.mark("own")
    assert Adder.add is plain
    Adder().add(1, 1)
    assert [name for name, _ in marks.found] == ["begins", "ends", "own"]
    times = [at for _, at in marks.found]
    assert times == sorted(times)


def test_a_function_that_fails_is_whole_again() -> None:
    plain = Adder.add
    with pytest.raises(TypeError), marking([Spot(Adder, "add", before="begins")]):
        Adder().add(1, "2")  # type: ignore[arg-type]
    assert Adder.add is plain


def test_parts_are_differences_and_never_negative() -> None:
    assert Cut(ONE, ordered([1.0, 3.0, 2.0, 6.0])).parts_s == (2.0, 0.0, 3.0)
    assert PARTS[KERNEL].side == "kernel"


def test_the_parts_follow_the_holder_whose_answer_came_last() -> None:
    sent = [DispatchSent(peer, LAYER, 4, 1) for peer in (ONE, TWO)]
    events: list[Event] = [*sent, *(ReplyReceived(peer, LAYER, 1.0, 0.0, 0.0) for peer in (TWO, ONE))]
    own = [("write", 1.0), ("written", 2.0), ("write", 3.0), ("written", 4.0)]
    own += [(name, at) for at, name in enumerate(("bytes", "frame", "decode", "decoded") * 2, 20)]
    of_one = [(f"node {name}", 2.0 + at) for at, name in enumerate(NODE_MOMENTS, 1)]
    found = cut(0.0, 30.0, events, own, {ONE: of_one, TWO: []})
    assert found is not None
    assert found.slowest == ONE
    assert found.moments == (0.0, 1.0, 2.0, *range(3, 12), *range(24, 28), 30.0)
    assert len(found.parts_s) == len(PARTS)
    assert sum(found.parts_s) == 30.0
    assert cut(0.0, 30.0, sent[:1], own, {ONE: of_one, TWO: []}) is None, "a request that was sent again"


TRACE = """
          python-11      [000] d..2. 0.000000: sched_switch: prev_comm=x prev_pid=9 prev_prio=1 prev_state=S ==> \
next_comm=my prog next_pid=11 next_prio=120
          python-11      [000] ..... 1.000000: sys_enter: NR 44 (1, 2, 3)
          python-11      [000] d..2. 2.000000: sched_waking: comm=my prog pid=12 prio=120 target_cpu=001
          my prog-12     [001] d..2. 4.000000: sched_switch: prev_comm=x prev_pid=9 prev_prio=1 prev_state=R+ ==> \
next_comm=my prog next_pid=12 next_prio=120
          python-11      [000] ..... 5.000000: sys_exit: NR 44 = 1
          my prog-12     [001] ..... 6.000000: sys_exit: NR 232 = 1
          my prog-12     [001] d..2. 8.000000: sched_switch: prev_comm=my prog prev_pid=12 prev_state=S ==> \
next_comm=x next_pid=9 next_prio=120
"""


def test_a_trace_tells_running_the_systems_time_and_waiting_apart() -> None:
    times = OsTimes(TRACE.replace("\\\n", "").splitlines())
    assert times.spent([11], 0.0, 5.0) == (0.0, 0.0, 4.0, 1.0)
    assert times.spent([12], 1.0, 9.0) == (2.0, 2.0, 0.0, 4.0), "an exit alone changes nothing"
    assert times.spent([12, 11], 0.0, 4.0) == (0.0, 2.0, 1.0, 1.0), "the second counts while the first is blocked"
    assert times.spent([99], 0.0, 4.0) == (4.0, 0.0, 0.0, 0.0)


def test_what_is_not_known_to_be_the_systems_counts_as_ours() -> None:
    nothing = spent_on_parts(Cut(ONE, tuple(map(float, range(len(PARTS) + 1)))), OsTimes(), lambda _: [1])
    assert all(part.ours_s == (0.0 if PARTS[i].is_hop else 1.0) for i, part in enumerate(nothing))
    assert all(part.system_s == (1.0 if PARTS[i].is_hop else 0.0) for i, part in enumerate(nothing))
    assert [(part.begins, part.ends) for part in PARTS if part.is_hop] == [
        (Where.CLIENT, Where.LOOP), (Where.LOOP, Where.WORKER), (Where.WORKER, Where.LOOP), (Where.LOOP, Where.CLIENT),
    ]  # fmt: skip


@pytest.mark.socket
def test_a_budget_names_every_part_and_its_parts_are_the_whole() -> None:
    plain = FrameDecoder.feed
    result = asyncio.run(bench_budget(["direct"], 40))
    assert FrameDecoder.feed is plain
    assert json.loads(json.dumps(result)) == result
    channels: Any = result["channels"]
    (found,) = channels
    assert [(part["where"], part["what"]) for part in found["parts"]] == [(part.side, part.what) for part in PARTS]
    assert found["num_exchanges"] == 40
    assert all(part["p50_us"] >= 0 for part in found["parts"])
    assert set(found["used"]) == {"client", "nodes"}
    assert "the experts" in table(result)
    assert ("ours_less_os" in found) == (found["not_traced"] == "")
    if not found["not_traced"]:
        assert found["ours_less_os"]["p50_us"] <= found["ours_marked"]["p50_us"]
        assert len(found["parts_spent"]) == len(PARTS)
