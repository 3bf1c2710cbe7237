"""What a LAN may tell us and what we tell a LAN: announcements are hints for members and noise for everybody else."""

from ipaddress import IPv4Interface

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.protocol.errors import InvalidRequest, RecordRejected
from shoal.protocol.identity import Identity
from shoal.protocol.lan import MAX_LAN_ADDRESSES, LanSwarm, NetworkCard, Txt, lan_cards

ALICE = Identity.from_seed(b"a" * 32)
ROOT, NONCE, PORT = b"r" * 32, b"n" * 12, 4001
OPEN, OURS, THEIRS = LanSwarm(ROOT), LanSwarm(ROOT, b"d" * 32), LanSwarm(ROOT, b"e" * 32)
OWN = (IPv4Interface("192.168.1.7/24"),)
NEAR = "192.168.1.9"
UP = frozenset({"up", "broadcast", "running", "multicast"})


def txt_of(swarm: LanSwarm, port: int = PORT, nonce: bytes = NONCE) -> Txt:
    return {key.encode(): value for key, value in swarm.announce(ALICE.public_key, port, nonce).items()}


@pytest.mark.parametrize("swarm", [OPEN, OURS])
def test_a_member_reads_where_a_peer_of_its_swarm_is(swarm: LanSwarm) -> None:
    assert swarm.read(txt_of(swarm), [NEAR], PORT, OWN) == (f"/ip4/{NEAR}/tcp/{PORT}/p2p/{ALICE.peer}",)


@pytest.mark.parametrize(
    ("reader", "writer"),
    [(OURS, THEIRS), (OURS, OPEN), (OPEN, OURS), (OPEN, LanSwarm(b"x" * 32))],
    ids=["another secret", "an open one", "a private one", "another model"],
)
def test_an_announcement_of_another_swarm_is_passed_over(reader: LanSwarm, writer: LanSwarm) -> None:
    with pytest.raises(RecordRejected, match="another swarm"):
        reader.read(txt_of(writer), [NEAR], PORT, OWN)


def test_a_private_announcement_shows_no_key_no_model_and_no_two_alike() -> None:
    first, second = (b"".join(filter(None, txt_of(OURS, nonce=bytes([n]) * 12).values())) for n in (1, 2))
    for said in (first, second):
        for secret in (ALICE.public_key, ROOT, b"d" * 32, ALICE.peer.encode()):
            assert secret not in said
    same = [a == b for a, b in zip(first[12:], second[12:], strict=False)]
    assert sum(same) < 12, "two runs of one peer can be told to be one"


def test_a_sealed_key_is_worth_nothing_at_another_port() -> None:
    with pytest.raises(RecordRejected):
        OURS.read(txt_of(OURS), [NEAR], PORT + 1, OWN)


@pytest.mark.parametrize("port", [0, -1, 65_536, 2**40])
def test_a_port_out_of_range_is_refused(port: int) -> None:
    with pytest.raises(RecordRejected, match="port"):
        OPEN.read(txt_of(OPEN), [NEAR], port, OWN)


@pytest.mark.parametrize(
    "host",
    ["8.8.8.8", "192.168.2.9", "127.0.0.1", "224.0.0.251", "192.168.1.255", "192.168.1.0", "0.0.0.0", "fe80::1",
     "printer.local", "", "192.168.1.9/24"],
)  # fmt: skip
def test_nobody_makes_us_dial_what_is_not_on_our_networks(host: str) -> None:
    with pytest.raises(RecordRejected, match="our networks"):
        OPEN.read(txt_of(OPEN), [host], PORT, OWN)
    assert OPEN.read(txt_of(OPEN), [host, NEAR], PORT, OWN) == OPEN.read(txt_of(OPEN), [NEAR], PORT, OWN)


def test_of_many_addresses_a_few_are_dialled() -> None:
    hosts = [f"192.168.1.{number}" for number in range(10, 60)]
    assert len(OPEN.read(txt_of(OPEN), hosts, PORT, OWN)) == MAX_LAN_ADDRESSES


@given(
    st.dictionaries(
        st.sampled_from([b"v", b"k", b"m", b"s"]) | st.binary(max_size=9), st.none() | st.binary(max_size=255)
    ),
    st.sampled_from([OPEN, OURS]),
)
def test_noise_from_the_lan_is_refused_and_breaks_nothing(txt: Txt, swarm: LanSwarm) -> None:
    with pytest.raises(RecordRejected):
        swarm.read(txt, [NEAR], PORT, OWN)
    with pytest.raises(RecordRejected):
        swarm.read({**txt, b"v": b"1"}, [NEAR], PORT, OWN)


@pytest.mark.parametrize("swarm", [OPEN, OURS])
def test_every_value_fits_a_txt_record(swarm: LanSwarm) -> None:
    pairs = swarm.announce(ALICE.public_key, PORT, NONCE).items()
    assert all(len(key) + 1 + len(value) <= 255 for key, value in pairs)


def test_a_nonce_of_another_size_is_our_own_mistake() -> None:
    with pytest.raises(InvalidRequest):
        OURS.announce(ALICE.public_key, PORT, b"short")


def card(network: str, *flags: str) -> NetworkCard:
    return NetworkCard(IPv4Interface(network), frozenset(flags) if flags else UP)


def test_only_private_networks_with_multicast_are_a_lan() -> None:
    lan, other = card("192.168.1.7/24"), card("10.1.2.3/8")
    not_lans = [
        card("127.0.0.1/8", "up", "loopback", "running", "multicast"), card("203.0.113.5/24"), card("100.64.0.9/10"),
        card("10.8.0.2/24", "up", "pointopoint", "multicast"), card("192.168.9.1/24", "broadcast", "multicast"),
        card("172.16.0.1/12", "up", "broadcast"),
    ]  # fmt: skip
    assert lan_cards([*not_lans, lan, other, lan], "0.0.0.0") == (lan.network, other.network)
    assert lan_cards([lan, other], "10.1.2.3") == (other.network,)
    for host in ("127.0.0.1", "::1", "::", "localhost", "8.8.8.8"):
        assert lan_cards([*not_lans, lan, other], host) == ()
