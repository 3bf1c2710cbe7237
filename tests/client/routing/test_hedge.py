"""The first good answer wins, nothing runs on behind it, and extra work stays within its budget."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.client.routing.hedge import Budget, Raced, Work, race
from shoal.protocol.errors import ChannelClosed, Malformed, ShoalError


async def answer(value: str, after: asyncio.Event | None = None) -> str:
    if after is not None:
        await after.wait()
    return value


async def fail(error: Exception, after: asyncio.Event | None = None) -> str:
    if after is not None:
        await after.wait()
    raise error


def raced(primary: Work[str], backup: Work[str] | None, is_late: bool = True) -> Raced[str]:
    async def when() -> Work[str] | None:
        if not is_late:
            await asyncio.Event().wait()
        return backup

    async def main() -> Raced[str]:
        result = await race(primary, 0.0, when)
        assert asyncio.all_tasks() == {asyncio.current_task()}
        return result

    return asyncio.run(main())


def test_an_answer_in_time_needs_no_backup() -> None:
    assert raced(answer("first"), None, is_late=False) == Raced("first", is_backup=False)


def test_a_backup_overtakes_a_late_answer() -> None:
    assert raced(answer("first", asyncio.Event()), answer("second")) == Raced("second", is_backup=True)


@pytest.mark.parametrize("error", [None, ChannelClosed()])
def test_what_comes_before_its_time_asks_for_no_backup(error: ShoalError | None) -> None:
    async def when() -> Work[str] | None:
        raise ZeroDivisionError

    async def main() -> None:
        primary = fail(error) if error else answer("first")
        assert await race(primary, 3600.0, when) == Raced("first", is_backup=False)

    if error:
        with pytest.raises(ChannelClosed):
            asyncio.run(main())
    else:
        asyncio.run(main())


def test_a_race_that_is_cancelled_before_its_time_ends_its_primary() -> None:
    async def main() -> None:
        ended: list[str] = []
        begun = asyncio.Event()

        async def primary() -> str:
            begun.set()
            try:
                await asyncio.Event().wait()
            finally:
                ended.append("first")
            raise ShoalError

        async def when() -> Work[str] | None:
            raise ZeroDivisionError

        racing = asyncio.create_task(race(primary(), 3600.0, when))
        await begun.wait()
        racing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await racing
        assert ended == ["first"]
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())


def test_a_late_answer_without_another_way_is_waited_for() -> None:
    async def main() -> Raced[str]:
        late = asyncio.Event()

        async def when() -> Work[str] | None:
            asyncio.get_running_loop().call_soon(late.set)
            return None

        return await race(answer("first", late), 0.0, when)

    assert asyncio.run(main()) == Raced("first", is_backup=False)


def test_a_failure_before_a_backup_runs_is_raised_at_once() -> None:
    with pytest.raises(ChannelClosed):
        raced(fail(ChannelClosed()), None, is_late=False)


def test_a_failure_while_a_backup_runs_leaves_the_answer_to_the_backup() -> None:
    async def main() -> Raced[str]:
        started, failed = asyncio.Event(), asyncio.Event()

        async def backup() -> str:
            started.set()
            await failed.wait()
            return "second"

        async def primary() -> str:
            await started.wait()
            asyncio.get_running_loop().call_soon(failed.set)
            raise ChannelClosed

        async def when() -> Work[str] | None:
            return backup()

        return await race(primary(), 0.0, when)

    assert asyncio.run(main()) == Raced("second", is_backup=True)


def test_a_backup_that_fails_leaves_the_answer_to_the_holder() -> None:
    async def main() -> Raced[str]:
        late = asyncio.Event()

        async def backup() -> str:
            asyncio.get_running_loop().call_later(0, late.set)
            raise Malformed

        async def when() -> Work[str] | None:
            return backup()

        return await race(answer("first", late), 0.0, when)

    assert asyncio.run(main()) == Raced("first", is_backup=False)


def test_when_both_fail_the_holders_own_error_is_told() -> None:
    async def main() -> None:
        failed = asyncio.Event()

        async def backup() -> str:
            asyncio.get_running_loop().call_later(0, failed.set)
            raise Malformed

        async def when() -> Work[str] | None:
            return backup()

        await race(fail(ChannelClosed(), failed), 0.0, when)

    with pytest.raises(ChannelClosed):
        asyncio.run(main())


def test_a_bug_in_a_backup_is_not_hidden_by_the_race() -> None:
    with pytest.raises(ZeroDivisionError):
        raced(answer("first", asyncio.Event()), fail(ZeroDivisionError()))


def test_cancelling_a_race_ends_both() -> None:
    async def main() -> None:
        ended: list[str] = []

        async def run(name: str) -> str:
            try:
                await asyncio.Event().wait()
            finally:
                ended.append(name)
            raise ShoalError

        started = asyncio.Event()

        async def when() -> Work[str] | None:
            asyncio.get_running_loop().call_later(0, started.set)
            return run("second")

        racing = asyncio.create_task(race(run("first"), 0.0, when))
        await started.wait()
        racing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await racing
        assert sorted(ended) == ["first", "second"]

    asyncio.run(main())


@given(asks=st.lists(st.booleans(), max_size=400), share=st.floats(0.01, 0.5), burst=st.floats(1, 8))
def test_extra_work_never_exceeds_its_share_and_the_burst(asks: list[bool], share: float, burst: float) -> None:
    budget, num_extra = Budget(share, burst), 0
    for place, wants_extra in enumerate(asks, 1):
        budget.earn()
        num_extra += wants_extra and budget.take()
        assert num_extra <= place * share + burst + 1e-9


def test_a_long_calm_saves_up_no_more_extra_requests_than_the_burst() -> None:
    budget = Budget(0.5, 2)
    for _ in range(100):
        budget.earn()
    assert [budget.take() for _ in range(3)] == [True, True, False]
