"""What events add up to: passes with their layers, a bounded log, percentiles by peer."""

import pytest

from shoal.client.tui.bars import bar, milliseconds, size, sparkline, split
from shoal.client.tui.event_book import MAX_NOTES, MAX_PASSES, EventBook, percentile
from shoal.protocol.events import HolderJoined
from tests.client.tui.fakes import Clock, pass_events, peer_id, small_swarm, some_events


def book_of(*numbers: int) -> EventBook:
    book, swarm = EventBook(Clock()), small_swarm()
    for number in numbers:
        for event in pass_events(number, list(swarm.counts), [each.peer for each in swarm.members[:2]]):
            book(event)
    return book


def test_a_layers_segments_add_up_to_its_time() -> None:
    taken = next(iter(book_of(3).decoding()))
    assert [layer.layer for layer in taken.layers] == [1, 2, 3, 4]
    for layer in taken.layers:
        experts_s = layer.wire + layer.expert + layer.wait + layer.other
        assert layer.total == pytest.approx(layer.attention + layer.route + experts_s)
    assert sum(taken.by_segment()) == pytest.approx(sum(layer.total for layer in taken.layers) + taken.head_s)


def test_everything_is_bounded() -> None:
    book = book_of(*range(MAX_PASSES + 10))
    for number in range(MAX_NOTES + 10):
        book(HolderJoined(peer_id(number % 9), 1))
    assert len(book.passes) == MAX_PASSES
    assert len(book.entries()) == MAX_NOTES
    assert len(book.entries(with_exchanges=True)) <= 2 * MAX_NOTES


def test_the_slowest_peer_comes_first_and_failures_are_counted() -> None:
    book = EventBook(Clock())
    for event in some_events(small_swarm()):
        book(event)
    times = book.peer_times()
    assert times[0].p99_ms >= times[1].p99_ms
    assert (book.num_failovers, book.num_lost, book.num_hedged) == (1, 1, 0)


def test_percentiles_are_values_that_were_measured() -> None:
    assert percentile([], 0.5) == 0
    assert percentile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert percentile([3.0, 1.0, 2.0], 0.99) == 3.0


def test_figures_are_short_and_bars_end_where_they_should() -> None:
    assert [milliseconds(s) for s in (0.00042, 0.0123, 0.123, 1.2)] == ["0.42 ms", "12.3 ms", "123 ms", "1.20 s"]
    assert [size(n) for n in (812, 44_000_000, 132_000_000, 12e9, 3e13)] == [
        "812 B",
        "44.0 MB",
        "132 MB",
        "12.0 GB",
        "30.0 TB",
    ]
    assert bar(0.5, 10) == "█████─────"
    assert bar(7, 3) == "███"
    assert split([1.0, 1.0, 2.0], 4.0, 8) == [2, 2, 4]
    assert sum(split([0.1] * 6, 0.6, 7)) == 7
    assert split([1.0], 0.0, 8) == [0]
    assert sparkline([0, 1, 2, 8], 3) == "▂▃█"
    assert sparkline([], 3) == ""
