"""What a chronicle makes of tokens, events and faults."""

import asyncio

import pytest

from shoal.protocol.events import DispatchSent, FailedOver, Hedged, HolderJoined, ReplyReceived
from shoal.protocol.ids import ExpertId, LayerId, PeerId
from shoal.simulations.chronicle import Chronicle, Fault, Replaced, TokenTime, median_ms, p99_ms

VICTIM, OTHER = PeerId("victim"), PeerId("other")
LAYER, EXPERTS = LayerId(1), (ExpertId(0),)


def chronicle_of(ends: list[float], faults: list[Fault], replaced: list[Replaced]) -> Chronicle:
    """Tokens that follow each other and end at these times; the first begins at 0."""
    chronicle = Chronicle()
    chronicle.tokens = [TokenTime(since, until) for since, until in zip([0.0, *ends], ends, strict=False)]
    chronicle.faults, chronicle.replaced = faults, replaced
    return chronicle


def test_the_extra_time_is_of_the_tokens_that_met_the_fault_beyond_the_median_before() -> None:
    fault = Fault(3.5, frozenset({VICTIM}), is_death=True)
    late = Replaced(5.5, VICTIM, 900.0)
    chronicle = chronicle_of([1.0, 2.0, 3.0, 4.0, 6.0, 7.0, 17.0], [fault], [late, Replaced(16.0, OTHER, 9.0)])
    assert [token.ended for token in chronicle.met(fault)] == [4.0, 6.0]
    assert chronicle.extras_ms(fault) == [pytest.approx(0), pytest.approx(1000)]
    assert [token.ended for token in chronicle.before()] == [1.0, 2.0, 3.0]
    assert [token.ended for token in chronicle.during()] == [4.0, 6.0]
    assert [token.ended for token in chronicle.after()] == [7.0, 17.0]


def test_a_call_that_was_replaced_before_a_fault_is_none_of_its() -> None:
    fault = Fault(3.5, frozenset({VICTIM}), is_death=True)
    chronicle = chronicle_of([1.0, 2.0, 3.0, 4.0], [fault], [Replaced(0.5, VICTIM, 900.0)])
    assert [token.ended for token in chronicle.met(fault)] == [4.0]


def test_all_tokens_of_a_fault_that_lasts_are_during_it() -> None:
    fault = Fault(1.5, frozenset({VICTIM}), until=3.5)
    chronicle = chronicle_of([1.0, 2.0, 3.0, 4.0, 5.0], [fault], [])
    assert [token.ended for token in chronicle.during()] == [2.0, 3.0, 4.0]


def test_a_race_that_the_holder_won_is_no_replacement() -> None:
    chronicle = Chronicle()
    chronicle(Hedged(VICTIM, LAYER, EXPERTS, False, 0.1))
    chronicle(Hedged(VICTIM, LAYER, EXPERTS, True, 0.2))
    chronicle(FailedOver(OTHER, LAYER, EXPERTS, "ChannelClosed", 0.3))
    assert [(each.peer, each.call_ms) for each in chronicle.replaced] == [(VICTIM, 200.0), (OTHER, 300.0)]


def test_an_act_waits_for_a_request_to_one_of_its_peers_and_happens_once() -> None:
    chronicle, acted = Chronicle(), list[PeerId]()
    chronicle.at_next_dispatch({VICTIM}, acted.append)
    chronicle(DispatchSent(OTHER, LAYER, 1, 1))
    chronicle(DispatchSent(VICTIM, LAYER, 1, 1))
    chronicle(DispatchSent(VICTIM, LAYER, 1, 1))
    assert acted == [VICTIM]


def test_who_waits_is_woken_by_what_he_waits_for_and_by_the_error_that_ends_it() -> None:
    async def wait() -> None:
        chronicle = Chronicle()
        async with asyncio.timeout(60), asyncio.TaskGroup() as group:
            group.create_task(chronicle.more_tokens(2))
            group.create_task(chronicle.until_joined({VICTIM}, 0.0))
            group.create_task(chronicle.until_replied({VICTIM}, 0.0))
            await asyncio.sleep(0)
            chronicle(HolderJoined(VICTIM, 1))
            chronicle(ReplyReceived(VICTIM, LAYER, 0.1, 0.0, 0.0))
            chronicle.begin_answer()
            chronicle.add_token()
            chronicle.add_token()
        assert len(chronicle.tokens) == 1, "the first of an answer is its prefill's"
        chronicle.fail(ValueError("the answer broke"))
        with pytest.raises(ValueError, match="broke"):
            await chronicle.more_tokens(1)

    asyncio.run(wait())


def test_percentiles_of_few_tokens_are_the_worst_and_of_none_are_zero() -> None:
    tokens = [TokenTime(0.0, ms / 1000) for ms in range(1, 11)]
    assert (median_ms(tokens), p99_ms(tokens)) == (pytest.approx(5.5), pytest.approx(10))
    assert (median_ms([]), p99_ms([])) == (0.0, 0.0)
