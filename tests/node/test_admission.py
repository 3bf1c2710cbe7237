"""Admission: over the limit is BUSY with a time, and room comes back however a request ends."""

import pytest

from shoal.node.admission import Admission
from shoal.protocol.errors import Busy, Draining


def test_over_the_limit_is_busy_and_says_when() -> None:
    admission = Admission(max_macs=100)
    with admission.admit(80), pytest.raises(Busy) as refused, admission.admit(30):
        pass
    assert refused.value.retry_after_s > 0
    with admission.admit(100):
        pass


def test_a_request_larger_than_the_limit_is_served_when_nothing_else_is() -> None:
    admission = Admission(max_macs=100)
    with admission.admit(500), pytest.raises(Busy), admission.admit(1):
        pass


def test_room_comes_back_when_a_request_fails() -> None:
    admission = Admission(max_macs=100)
    for _ in range(3):
        with pytest.raises(ValueError, match="kernel"), admission.admit(100):
            raise ValueError("kernel")
    assert admission.backlog_s == 0


def test_a_node_that_leaves_takes_nothing_new() -> None:
    admission = Admission(max_macs=100)
    admission.drain()
    with pytest.raises(Draining), admission.admit(1):
        pass


def test_the_speed_is_learned_from_what_calls_took() -> None:
    admission = Admission(max_macs=100)
    for _ in range(60):
        admission.observe(macs=10**9, compute_s=0.1)
    assert admission.macs_per_s == pytest.approx(1e10, rel=0.01)
