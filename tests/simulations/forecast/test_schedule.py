"""The schedule of steps says what can be counted on fingers.

Run: pytest tests/simulations/forecast/test_schedule.py
"""

from collections.abc import Sequence

from shoal.simulations.forecast.schedule import ENDLESS, LayerWork, Step, finish_s, wavefront_s


def exchange(node: str, work_s: float = 3.0) -> Sequence[Step]:
    """The client writes for a second, ten on the way there, a node works, ten back, the client reads for a second."""
    return [Step("client", 1.0, 10.0), Step(node, work_s, 10.0), Step("client", 1.0)]


def test_one_process_does_one_thing_at_a_time() -> None:
    assert finish_s([exchange("a")], ENDLESS) == [25.0]
    assert finish_s([exchange("a"), exchange("b")], ENDLESS) == [25.0, 26.0]  # written one after the other
    assert finish_s([exchange("a"), exchange("a")], ENDLESS) == [25.0, 28.0]  # and computed so
    assert finish_s([exchange("a"), exchange("b", 2.0)], ENDLESS) == [25.0, 26.0]  # read one after the other


def test_processes_of_one_machine_wait_for_its_cores() -> None:
    assert finish_s([exchange("a"), exchange("b")], 2) == [25.0, 26.0]
    assert finish_s([exchange("a"), exchange("b")], 1) == [25.0, 28.0]  # the second node begins when the first ends
    assert finish_s([exchange("a"), exchange("b"), exchange("c")], 2) == [25.0, 26.0, 28.0]


def test_a_link_needs_no_core_and_carries_one_frame_at_a_time() -> None:
    frame = [Step("client", 1.0), Step("link", 5.0, is_on_core=False), Step("node", 1.0)]
    assert finish_s([frame, frame], 1) == [7.0, 12.0]


def layer(trunk_s: float, exchange_s: float) -> LayerWork:
    return LayerWork(Step("trunk", trunk_s), [[Step("wire", 0.0, exchange_s, is_on_core=False)]])


def test_chunks_overlap_and_each_follows_the_one_ahead_of_it() -> None:
    chunk = [layer(1.0, 3.0), layer(1.0, 3.0)]
    assert wavefront_s([chunk], 4, ENDLESS) == 8.0
    assert wavefront_s([chunk, chunk], 4, ENDLESS) == 9.0
    assert wavefront_s([chunk, chunk], 1, ENDLESS) == 16.0
    assert wavefront_s([chunk] * 3, 2, ENDLESS) == 16.0  # the third begins when the first has ended, at 8
    assert wavefront_s([chunk] * 8, 8, ENDLESS) == 19.0  # the trunk computes for 16 seconds, then the last answer


def test_a_layer_waits_for_its_last_exchange() -> None:
    slow, quick = [Step("wire", 0.0, 9.0, is_on_core=False)], [Step("wire", 0.0, 1.0, is_on_core=False)]
    assert wavefront_s([[LayerWork(Step("trunk", 1.0), [slow, quick])] * 2], 4, ENDLESS) == 20.0
