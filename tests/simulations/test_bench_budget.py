"""The time budget of an exchange adds up to the whole, comes from real processes, and leaves no mark behind."""

import asyncio
import json
from typing import Any

import pytest

from shoal.protocol.frames import FrameDecoder
from shoal.simulations.bench.budget import KERNEL, PARTS, bench_budget, table
from shoal.simulations.bench.budget import _steps as steps
from shoal.simulations.bench.marks import Spot, marking


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
    assert steps([1.0, 3.0, 2.0, 6.0]) == [2.0, 0.0, 3.0]
    assert PARTS[KERNEL][0] == "kernel"


@pytest.mark.socket
def test_a_budget_names_every_part_and_its_parts_are_the_whole() -> None:
    plain = FrameDecoder.feed
    result = asyncio.run(bench_budget(["direct"], 40))
    assert FrameDecoder.feed is plain
    assert json.loads(json.dumps(result)) == result
    channels: Any = result["channels"]
    (found,) = channels
    assert [(part["where"], part["what"]) for part in found["parts"]] == [*PARTS]
    assert found["num_exchanges"] == 40
    assert all(part["p50_us"] >= 0 for part in found["parts"])
    assert set(found["used"]) == {"client", "nodes"}
    assert "the experts" in table(result)
