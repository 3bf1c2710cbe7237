"""Waves keep their order in every layer, whatever the answers do; no more of them are under way than may be.

Run: pytest tests/client/trunk/test_wavefront.py
"""

import asyncio
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.client.trunk.wavefront import Turn, Wavefront

NUM_LAYERS = 4

Waits = Sequence[int]
"""Turns of the loop that each layer's answer takes."""


class Trunk:
    """Runs waves without arithmetic, one job at a time, and remembers what happened."""

    def __init__(self) -> None:
        self.attended: list[tuple[int, int]] = []
        """(layer, wave), in the order of the jobs."""
        self.num_under_way = 0
        self.most_under_way = 0
        self.num_waiting = 0
        self.most_waiting = 0
        self._device = asyncio.Lock()

    async def run_wave(self, wave: tuple[int, Waits], turn: Turn) -> int:
        place, waits = wave
        self.num_under_way += 1
        self.most_under_way = max(self.most_under_way, self.num_under_way)
        for layer, num_turns in enumerate(waits):
            await turn.begin()
            async with self._device:
                await asyncio.sleep(0)
                self.attended.append((layer, place))
            turn.attended()
            self.num_waiting += 1
            self.most_waiting = max(self.most_waiting, self.num_waiting)
            for _ in range(num_turns):
                await asyncio.sleep(0)
            self.num_waiting -= 1
        self.num_under_way -= 1
        return place


waits = st.lists(st.integers(0, 12), min_size=NUM_LAYERS, max_size=NUM_LAYERS)


@given(st.lists(waits, min_size=1, max_size=8), st.integers(1, 5))
def test_in_every_layer_waves_attend_in_their_order_and_all_come_through(each: list[list[int]], depth: int) -> None:
    trunk = Trunk()

    async def main() -> list[int]:
        return await Wavefront(depth, trunk.run_wave).run(list(enumerate(each)), lambda _: True)

    assert asyncio.run(main()) == list(range(len(each)))
    for layer in range(NUM_LAYERS):
        assert [place for at, place in trunk.attended if at == layer] == list(range(len(each)))
    assert trunk.most_under_way <= depth


def test_while_answers_are_on_their_way_the_next_waves_compute() -> None:
    trunk, slow = Trunk(), [50] * NUM_LAYERS
    asyncio.run(Wavefront(3, trunk.run_wave).run([(place, slow) for place in range(6)], lambda _: True))
    assert trunk.most_waiting == 3


def test_the_first_that_may_not_enter_keeps_out_those_behind_it() -> None:
    trunk = Trunk()
    waves = [(place, [1] * NUM_LAYERS) for place in range(5)]
    assert asyncio.run(Wavefront(4, trunk.run_wave).run(waves, lambda wave: wave[0] != 2)) == [0, 1]
    assert asyncio.run(Wavefront(4, trunk.run_wave).run(waves, lambda wave: False)) == [0]


def test_the_first_error_ends_all_waves_and_is_raised_as_itself() -> None:
    ended: list[int] = []

    async def run_wave(place: int, turn: Turn) -> None:
        try:
            await turn.begin()
            turn.attended()
            if place == 1:
                raise ZeroDivisionError("a bug")
            await asyncio.Event().wait()
        finally:
            ended.append(place)

    async def main() -> None:
        await Wavefront(4, run_wave).run(range(4), lambda _: True)

    with pytest.raises(ZeroDivisionError):
        asyncio.run(main())
    assert sorted(ended) == [0, 1]


def test_who_cancels_the_pass_cancels_its_waves() -> None:
    ended: list[int] = []

    async def run_wave(place: int, turn: Turn) -> None:
        try:
            await turn.begin()
            turn.attended()
            await asyncio.Event().wait()
        finally:
            ended.append(place)

    async def main() -> None:
        running = asyncio.create_task(Wavefront(2, run_wave).run(range(4), lambda _: True))
        for _ in range(20):
            await asyncio.sleep(0)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running

    asyncio.run(main())
    assert sorted(ended) == [0, 1]
