"""What strangers may cost is bounded by where they come from, and a flood pushes out itself."""

import pytest

from shoal.protocol import limits
from shoal.protocol.errors import Busy
from shoal.protocol.messages import Lane
from shoal.protocol.net.origins import HalfOpen, HalfOpenTable, HandshakeRates, origin_of


class Clock:
    """Seconds that a test lets pass."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def place(origin: str | None, cuts: list[str | None]) -> HalfOpen:
    return HalfOpen(origin, lambda: cuts.append(origin))


@pytest.mark.parametrize(
    ("peername", "origin"),
    [
        (("192.0.2.7", 4000), "192.0.2.7"),
        (("2001:db8:1:2:3:4:5:6", 4000, 0, 0), "2001:db8:1:2::/64"),
        (("fe80::1%eth0", 4000, 0, 2), "fe80::/64"),
        (("::ffff:192.0.2.7", 4000, 0, 0), "192.0.2.7"),
        ("", None),
        (None, None),
        (("not an address", 1), None),
    ],
)
def test_an_origin_is_an_address_or_a_customers_network(peername: object, origin: str | None) -> None:
    assert origin_of(peername) == origin


def test_one_origin_has_a_part_of_the_places(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_HALF_OPEN_PER_ORIGIN", 3)
    table, cuts = HalfOpenTable(), list[str | None]()
    places = [place("a", cuts) for _ in range(3)]
    for each in places:
        table.enter(each)
    with pytest.raises(Busy):
        table.enter(place("a", cuts))
    table.enter(place("b", cuts))
    table.leave(places[0])
    table.enter(place("a", cuts))
    assert len(table) == 4
    assert not cuts


def test_sixty_four_clients_behind_one_router_may_come_at_once() -> None:
    table, rates, cuts = HalfOpenTable(), HandshakeRates(Clock()), list[str | None]()
    for _ in range(64 * len(Lane)):
        rates.take("192.0.2.7")
        table.enter(place("192.0.2.7", cuts))
    assert 64 * len(Lane) <= limits.MAX_CONNECTIONS_PER_ORIGIN
    assert not cuts


def test_when_all_places_are_taken_the_oldest_of_the_largest_origin_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_HALF_OPEN", 4)
    table, cuts = HalfOpenTable(), list[str | None]()
    places = [place(origin, cuts) for origin in ("a", "b", "b", "b")]
    for each in places:
        table.enter(each)
    table.enter(place("c", cuts))
    assert cuts == ["b"]
    assert [each.is_cut for each in places] == [False, True, False, False]
    table.leave(places[1])  # its owner gives back what it has lost already
    assert len(table) == 4


def test_handshakes_come_at_a_rate_by_origin_and_in_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "HANDSHAKE_BURST", 5)
    monkeypatch.setattr(limits, "HANDSHAKES_PER_S", 4)
    monkeypatch.setattr(limits, "HANDSHAKE_BURST_PER_ORIGIN", 3)
    monkeypatch.setattr(limits, "HANDSHAKES_PER_S_PER_ORIGIN", 2)
    clock = Clock()
    rates = HandshakeRates(clock)
    for _ in range(3):
        rates.take("a")
    with pytest.raises(Busy):
        rates.take("a")
    rates.take("b")
    rates.take(None)
    with pytest.raises(Busy):
        rates.take("c")  # five in all
    clock.now_s += 1
    rates.take("a")
    rates.take("a")
    with pytest.raises(Busy):
        rates.take("a")


def test_origins_that_have_gone_are_forgotten() -> None:
    clock = Clock()
    rates = HandshakeRates(clock)
    for number in range(300):
        rates.take(f"192.0.2.{number}")
    clock.now_s += 100
    rates.take("192.0.2.1")
    assert len(rates._of) == 1
