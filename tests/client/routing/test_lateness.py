"""When a request is late: after its time, and while those before it are answered, after another time for each.

Run: pytest tests/client/routing/test_lateness.py
"""

import asyncio
import random
from collections.abc import Sequence

import pytest

from shoal.client.routing.dispatch import _Patience, _until_late
from shoal.client.routing.health import MAX_DEADLINE_S, MIN_DEADLINE_S, Health
from shoal.simulations.virtual.loop import run_virtual


def late_after_s(num_ahead: int, answers_at: Sequence[float]) -> float:
    """Virtual seconds until a request is late whose time is 1 s, when others are answered at these moments."""

    async def measure() -> float:
        loop, health = asyncio.get_running_loop(), Health()
        started = loop.time()
        patience = _Patience(health, 1.0, 2.0, num_ahead + 1, health.num_answered)
        for at in answers_at:
            loop.call_later(at, health.answered, 0.1, 0.0, 1)
        await asyncio.sleep(patience.first_s)
        await _until_late(patience)
        return loop.time() - started

    return run_virtual(measure, random.Random(0), 60.0)


@pytest.mark.parametrize(
    ("num_ahead", "answers_at", "expected_s"),
    [
        pytest.param(0, [], 1.0, id="alone"),
        pytest.param(0, [0.5], 1.0, id="nothing was sent before it"),
        pytest.param(3, [], 1.0, id="nothing is answered"),
        pytest.param(3, [0.5], 2.0, id="one is answered, then none"),
        pytest.param(3, [0.5, 1.5, 2.5], 4.0, id="all before it are answered"),
        pytest.param(1, [0.5, 1.5, 2.5, 3.5], 2.0, id="no more than were before it"),
    ],
)
def test_a_request_is_late_once_its_holder_answers_nothing(
    num_ahead: int, answers_at: list[float], expected_s: float
) -> None:
    assert late_after_s(num_ahead, answers_at) == pytest.approx(expected_s)


def test_a_deadline_counts_what_is_under_way_already() -> None:
    health = Health(srtt_s=0.01, rttvar_s=0.0)
    assert health.deadline_s(0) == MIN_DEADLINE_S
    for _ in range(3):
        health.asked(0, 0.0)
    assert health.deadline_s(0) == 4 * MIN_DEADLINE_S
    for _ in range(1000):
        health.asked(0, 0.0)
    assert health.deadline_s(0) == MAX_DEADLINE_S
