"""Admission: over a limit is BUSY with the time until there is room, room comes back, and nobody is starved."""

from contextlib import ExitStack

import pytest

from shoal.node.serving.admission import OVERHEAD_BYTES, Admission, AdmissionLimits, Demand, Wire
from shoal.protocol.errors import Busy, Draining
from shoal.protocol.ids import PeerId

A, B, C = PeerId("a"), PeerId("b"), PeerId("c")
SECOND = 10**9
"""Multiply-accumulates that the nodes of these tests do in a second."""


class Clock:
    """Seconds that a test lets pass."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def an_admission(
    limits: AdmissionLimits = AdmissionLimits(1.0),  # noqa: B008
    clock: Clock | None = None,
    wire: Wire = Wire(),  # noqa: B008
) -> Admission:
    admission = Admission(limits, clock or Clock(), wire)
    admission.observe(SECOND, 1.0)
    return admission


def seconds(peer: PeerId, cost_s: float, wait_s: float = float("inf")) -> Demand:
    return Demand(peer, round(cost_s * SECOND), wait_s=wait_s)


def refusal(admission: Admission, demand: Demand) -> float:
    """The time to come back that a refused request is told."""
    with pytest.raises(Busy) as refused, admission.admit(demand):
        pass
    return refused.value.retry_after_s


def test_over_the_limit_is_busy_until_so_much_is_worked_off() -> None:
    admission = an_admission()
    with admission.admit(seconds(A, 0.8)):
        assert admission.backlog_s == pytest.approx(0.8)
        assert refusal(admission, seconds(B, 0.5)) == pytest.approx(0.3)
    with admission.admit(seconds(A, 1.0)):
        pass


def test_a_request_larger_than_the_limit_is_served_when_nothing_else_is() -> None:
    admission = an_admission()
    with admission.admit(seconds(A, 5.0)):
        assert refusal(admission, seconds(B, 0.1)) == pytest.approx(4.1)
    with admission.admit(seconds(A, 0.2)):
        assert refusal(admission, seconds(B, 5.0)) == pytest.approx(0.2)  # when it will be idle


def test_memory_is_a_limit_too_and_its_time_is_in_proportion() -> None:
    admission = an_admission(AdmissionLimits(10.0, max_queue_bytes=10 * OVERHEAD_BYTES))
    big = Demand(A, SECOND, request_bytes=3 * OVERHEAD_BYTES, reply_bytes=OVERHEAD_BYTES)
    assert big.memory_bytes == 8 * OVERHEAD_BYTES
    with admission.admit(big):
        assert refusal(admission, Demand(B, 1, request_bytes=2 * OVERHEAD_BYTES)) == pytest.approx(3 / 8)
        with admission.admit(Demand(B, 1)):
            assert admission.backlog_bytes == 9 * OVERHEAD_BYTES
    assert admission.backlog_bytes == 0


def test_what_would_come_after_its_deadline_is_refused_at_once() -> None:
    admission = an_admission(AdmissionLimits(10.0))
    with admission.admit(seconds(A, 0.5)):
        assert refusal(admission, seconds(A, 0.1, wait_s=0.3)) == pytest.approx(0.2)
        with admission.admit(seconds(A, 0.1, wait_s=0.6)):
            pass


def test_who_has_nothing_in_the_queue_waits_a_turn_and_not_the_whole_queue() -> None:
    admission = an_admission(AdmissionLimits(10.0))
    with admission.admit(seconds(A, 4.0)), admission.admit(seconds(B, 0.1, wait_s=0.2)):
        pass


def test_one_peer_gets_half_of_the_queue_and_a_newcomer_finds_room() -> None:
    admission = an_admission()
    with ExitStack() as stack:
        for _ in range(5):
            stack.enter_context(admission.admit(seconds(A, 0.1)))
        assert refusal(admission, seconds(A, 0.1)) == pytest.approx(0.1)
        stack.enter_context(admission.admit(seconds(B, 0.4)))


def test_a_peer_alone_is_never_over_its_share() -> None:
    admission = an_admission(clock=Clock())  # no time passes: its bucket never fills again
    for _ in range(1000):
        with admission.admit(seconds(A, 0.3)), admission.admit(seconds(A, 0.1)):
            pass


def test_who_took_more_than_his_share_yields_to_who_waits_until_his_debt_is_paid() -> None:
    clock = Clock()
    admission = an_admission(AdmissionLimits(1.0, share_burst_s=0.5), clock)
    for _ in range(10):
        with admission.admit(seconds(A, 0.3)):
            pass
    with admission.admit(seconds(B, 0.1)):
        wait_s = refusal(admission, seconds(A, 0.1))
        assert wait_s == pytest.approx(1.0)  # half a second of debt, half a second of the node per second
        clock.now_s += wait_s
        with admission.admit(seconds(A, 0.1)):
            pass
    with admission.admit(seconds(A, 0.5)):  # B has gone
        pass


def test_bytes_are_shared_where_the_owner_limits_them() -> None:
    clock = Clock()
    wire = Wire(up_bytes_per_s=1000.0, down_bytes_per_s=500.0)
    admission = an_admission(AdmissionLimits(1.0, share_burst_s=0.5), clock, wire)
    with admission.admit(Demand(A, 1, request_bytes=100, reply_bytes=1000)):  # one second of the wire
        pass
    with admission.admit(Demand(B, 1)):
        assert refusal(admission, Demand(A, 1)) > 0


def test_room_comes_back_when_a_request_fails() -> None:
    admission = an_admission()
    for _ in range(3):
        with pytest.raises(ValueError, match="kernel"), admission.admit(seconds(A, 1.0)):
            raise ValueError("kernel")
    assert admission.backlog_s == 0
    assert admission.backlog_bytes == 0
    assert admission.num_admitted == 0


def test_a_node_that_leaves_takes_nothing_new() -> None:
    admission = an_admission()
    admission.drain()
    with pytest.raises(Draining), admission.admit(seconds(A, 0.1)):
        pass


def test_a_guess_of_the_speed_asks_for_no_long_wait() -> None:
    admission = Admission(AdmissionLimits(1.0), Clock())
    with admission.admit(Demand(A, 10**12)):
        assert refusal(admission, Demand(B, 10**12)) <= 0.1


def test_the_speed_is_learned_from_what_calls_took() -> None:
    admission = Admission(AdmissionLimits(), Clock())
    admission.observe(macs=10**9, compute_s=0.1)
    assert admission.macs_per_s == pytest.approx(1e10)
    for _ in range(60):
        admission.observe(macs=10**9, compute_s=0.2)
    assert admission.macs_per_s == pytest.approx(5e9, rel=0.01)
