"""The limit on bytes per second: kept on a fake clock and on real sockets, and nothing is lost or reordered."""

import asyncio
import os
from contextlib import asynccontextmanager
from itertools import cycle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.protocol.net.channel import Traffic
from shoal.protocol.net.direct import DirectConnector, listen_direct
from shoal.protocol.net.throttle import BURST_S, PacedTransport, Throttle, TokenBucket, is_local
from tests.protocol.networks import CLIENT, SERVER, body_of, dispatch, echo, run

TEN_S = 10.0


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@given(bytes_per_s=st.integers(20_000, 20_000_000), fractions=st.lists(st.floats(0.1, 1.0), min_size=1, max_size=20))
def test_in_ten_seconds_a_greedy_sender_gets_its_rate_within_five_percent(
    bytes_per_s: int, fractions: list[float]
) -> None:
    clock = Clock()
    bucket = TokenBucket(bytes_per_s, clock)
    sizes = cycle(max(1, int(fraction * bucket.piece_bytes)) for fraction in fractions)
    sent, end = 0, clock.now + TEN_S
    while clock.now < end:
        size = next(sizes)
        clock.now += bucket.reserve(size)
        sent += size
    assert 0.95 <= sent / (bytes_per_s * TEN_S) <= 1.05


def test_what_was_saved_while_idle_is_a_tenth_of_a_second() -> None:
    clock = Clock()
    bucket = TokenBucket(1000, clock)
    bucket.reserve(1)
    clock.now += 3600
    assert bucket.reserve(int(1000 * BURST_S)) == 0
    assert bucket.reserve(500) == pytest.approx(0.5)
    assert bucket.backlog_s == pytest.approx(0.5)


class Recorder(asyncio.Transport):
    """A connection that remembers what was written when."""

    def __init__(self, protocol: asyncio.Protocol) -> None:
        super().__init__()
        self.protocol, self.written, self.is_closed = protocol, bytearray(), False
        self.closed = asyncio.Event()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += data

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self.protocol

    def get_write_buffer_size(self) -> int:
        return 0

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None: ...

    def is_closing(self) -> bool:
        return self.is_closed

    def close(self) -> None:
        self.is_closed = True
        self.closed.set()

    abort = close


class Pausable(asyncio.Protocol):
    """Counts how it is paused."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def pause_writing(self) -> None:
        self.calls.append("pause")

    def resume_writing(self) -> None:
        self.calls.append("resume")


def test_everything_is_sent_in_order_and_then_closed() -> None:
    async def scene() -> None:
        protocol = Pausable()
        inner = Recorder(protocol)
        paced = PacedTransport(inner, TokenBucket(2_000_000, asyncio.get_running_loop().time))
        paced.set_write_buffer_limits(high=100_000)
        sent = os.urandom(400_000)
        for start in range(0, len(sent), 7000):
            paced.write(sent[start : start + 7000])
        paced.close()
        assert len(inner.written) < len(sent)
        await inner.closed.wait()
        assert inner.written == sent
        assert protocol.calls == ["pause", "resume"]

    run(scene())


def test_an_abort_sends_nothing_more() -> None:
    async def scene() -> None:
        inner = Recorder(Pausable())
        paced = PacedTransport(inner, TokenBucket(1000, asyncio.get_running_loop().time))
        paced.write(bytes(50_000))
        paced.abort()
        so_far = len(inner.written)
        await asyncio.sleep(0.1)
        assert inner.is_closed
        assert len(inner.written) == so_far

    run(scene())


@asynccontextmanager
async def limited(throttle: Throttle):
    listener = await listen_direct(SERVER, "127.0.0.1", 0, echo, os.urandom, throttle=throttle)
    connector = DirectConnector(CLIENT, os.urandom)
    yield await connector.connect(SERVER.peer, listener.addresses, 5.0)
    await connector.aclose()
    await listener.aclose()


@pytest.mark.parametrize("direction", ["up", "down"])
def test_requests_over_a_limited_node_get_their_answers_and_are_counted(direction: str) -> None:
    """400 kB at 1 MB/s; that they take about 0.3 s more than without is for `shoal bench`, not for a test."""

    async def scene() -> None:
        bucket = TokenBucket(1_000_000, asyncio.get_running_loop().time)
        throttle = Throttle(up=bucket) if direction == "up" else Throttle(down=bucket)
        message = dispatch(num_tokens=16, hidden=1024)
        async with limited(throttle) as channel:
            replies = await asyncio.gather(*(channel.request(message, body_of(message, i)) for i in range(6)))
        assert [reply.body[0] for reply in replies] == list(range(6))
        answers = 6 * replies[0].message.body_size()
        assert throttle.traffic.bytes_sent >= answers
        assert throttle.traffic.bytes_received >= 6 * message.body_size()

    run(scene())


@pytest.mark.parametrize(
    ("address", "is_ours"),
    [
        (("10.1.2.3", 5), True), (("192.168.0.7", 5), True), (("172.31.0.1", 5), True), (("127.0.0.1", 5), True),
        (("169.254.3.3", 5), True), (("fe80::1%eth0", 5, 0, 2), True), (("fd12::1", 5, 0, 0), True),
        (("::ffff:10.0.0.1", 5, 0, 0), True), (("::1", 5, 0, 0), True),
        (("172.32.0.1", 5), False), (("100.64.0.1", 5), False), (("8.8.8.8", 5), False), (("203.0.113.5", 5), False),
        (("::ffff:8.8.8.8", 5, 0, 0), False), (("2001:db8::1", 5, 0, 0), False), (("0.0.0.0", 5), False),
        ("", False), (None, False), ("/run/streams.sock", False), (("a.name", 5), False), ((), False),
    ],
)  # fmt: skip
def test_private_addresses_are_the_owners_network_and_a_unix_socket_may_be_anybody(
    address: object, is_ours: bool
) -> None:
    assert is_local(address) is is_ours


@pytest.mark.parametrize("is_free", [True, False], ids=["lan_unlimited", "limited"])
def test_the_owners_network_is_outside_the_limits_if_he_says_so(is_free: bool) -> None:
    async def scene() -> None:
        bucket = TokenBucket(1_000_000, asyncio.get_running_loop().time)
        throttle = Throttle(up=bucket, down=bucket, lan_traffic=Traffic() if is_free else None)
        message = dispatch(num_tokens=4, hidden=1024)
        async with limited(throttle) as channel:
            await channel.request(message, body_of(message, 1))
        counted, other = (throttle.lan_traffic, throttle.traffic) if is_free else (throttle.traffic, Traffic())
        assert counted is not None
        assert counted.bytes_received >= message.body_size()
        assert (other.bytes_sent, other.bytes_received) == (0, 0)
        assert (bucket.backlog_s == 0.0 and bucket._due == float("-inf")) is is_free  # never asked

    run(scene())


def test_a_suspended_listener_finishes_what_it_has_and_lets_clients_in_again_afterwards() -> None:
    from shoal.protocol.errors import Draining, ShoalError
    from tests.protocol.networks import PAIRS, Gate

    async def scene() -> None:
        gate = Gate()
        async with PAIRS["direct"](gate) as swarm:
            channel = await swarm.connect()
            pending = asyncio.create_task(channel.request(dispatch(), body_of(dispatch())))
            await gate.arrived.wait()
            swarm.listener.suspend(5.0)
            with pytest.raises(ShoalError):
                await swarm.connect()
            gate.opened.set()
            await pending
            assert channel.is_draining
            with pytest.raises((Draining, ShoalError)):
                await channel.request(dispatch(), body_of(dispatch()))
            swarm.listener.resume()
            again = await swarm.connect()
            await again.request(dispatch(), body_of(dispatch()))
            assert [client.num_served for client in swarm.listener.clients()] == [1]

    run(scene())
