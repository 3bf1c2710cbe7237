"""A record names addresses that others can use."""

from shoal.node.addresses import announced
from shoal.protocol.limits import MAX_ADDRESSES

PEER = "12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN"


def multiaddr(ip: str) -> str:
    return f"/ip{6 if ':' in ip else 4}/{ip}/tcp/4001/p2p/{PEER}"


def test_listening_everywhere_is_announced_under_the_machines_own_addresses_without_loopback() -> None:
    known = [multiaddr("127.0.0.1"), multiaddr("192.168.1.5"), multiaddr("10.0.0.7")]
    assert announced(["0.0.0.0:5000"], known) == ("192.168.1.5:5000", "10.0.0.7:5000", *known[1:])


def test_a_swarm_on_loopback_stays_on_loopback() -> None:
    assert announced(["127.0.0.1:5000"], [multiaddr("127.0.0.1")]) == ("127.0.0.1:5000", multiaddr("127.0.0.1"))


def test_a_chosen_host_is_announced_as_it_is() -> None:
    known = [multiaddr("127.0.0.1"), multiaddr("192.168.1.5")]
    assert announced(["lab-7.example:5000"], known) == ("lab-7.example:5000", known[1])


def test_ipv6_addresses_stand_in_brackets() -> None:
    assert announced(["[::]:5000"], [multiaddr("2001:db8::7")])[0] == "[2001:db8::7]:5000"


def test_a_machine_with_many_interfaces_fits_a_record() -> None:
    many = [multiaddr(f"10.0.{i}.1") for i in range(30)]
    assert len(announced(["0.0.0.0:5000"], many)) == MAX_ADDRESSES
