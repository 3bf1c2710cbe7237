"""What a run of seeds that was ended leaves behind, and how another one goes on from there."""

import json
import random
from pathlib import Path

import pytest

from shoal.protocol.errors import InvalidRequest
from shoal.simulations.virtual.faults import FaultTally, Kind
from shoal.simulations.virtual.ledger import AHEAD, SAVE_EVERY_S, Failure, Ledger, SoakResult
from shoal.simulations.virtual.promises import Promises
from shoal.simulations.virtual.run import Outcome

PROGRAM = "0123456789abcdef"


def outcome(seed: int) -> Outcome:
    """Of a run that never was; every tenth seed fails."""
    tally = FaultTally(num_hours_off=seed % 2)
    tally.began[Kind.CRASH], tally.struck[Kind.DELAY] = seed, 2 * seed
    return Outcome(
        seed,
        "bad" if seed % 10 == 9 else None,
        0.25,
        6,
        10,
        f"{seed:016x}",
        promises=Promises(1, 3),
        faults=tally,
        num_drafted=seed % 3,
    )


def taken(ledger: Ledger, most: int) -> list[int]:
    seeds = (ledger.hand_out() for _ in range(most))
    return [seed for seed in seeds if seed is not None]


def whole(first: int, count: int) -> SoakResult:
    """The totals of one run that nobody ended."""
    with Ledger(first, first + count) as ledger:
        for seed in taken(ledger, count):
            ledger.add(outcome(seed))
        return ledger.result


def test_the_order_in_which_seeds_end_changes_nothing() -> None:
    with Ledger(5, 45) as ledger:
        seeds = taken(ledger, 100)
        assert seeds == list(range(5, 45))
        random.Random(1).shuffle(seeds)
        for seed in seeds:
            ledger.add(outcome(seed))
        assert ledger.num_left == 0
        assert ledger.result == whole(5, 40)
    assert ledger.result.failed == tuple(Failure(seed, "bad") for seed in (9, 19, 29, 39))


def test_no_more_seeds_are_out_than_may_wait_for_one_that_takes_long() -> None:
    with Ledger(0, 10 * AHEAD) as ledger:
        assert taken(ledger, 2 * AHEAD) == list(range(AHEAD))
        for seed in range(1, AHEAD):
            ledger.add(outcome(seed))
        assert ledger.hand_out() is None
        ledger.add(outcome(0))
        assert ledger.hand_out() == AHEAD


def test_runs_that_were_killed_anywhere_add_up_to_one_that_was_not(tmp_path: Path) -> None:
    """A killed run leaves the file as it was last saved, and a half-written new one."""
    path, rng = tmp_path / "state", random.Random(2)
    for _ in range(6):
        ledger = Ledger(100, 160, PROGRAM, path)
        seeds = taken(ledger, 14)
        rng.shuffle(seeds)
        for place, seed in enumerate(seeds):
            ledger.add(outcome(seed))
            if place == 9:
                ledger.save()
        ledger._unlock()  # which the system does
        (tmp_path / "state.new").write_text('{"format": 1, "ne', encoding="utf-8")
    with Ledger(100, 160, PROGRAM, path) as ledger:
        assert 0 < ledger.num_left < 60
        for seed in taken(ledger, 60):
            ledger.add(outcome(seed))
    assert ledger.result == whole(100, 60)
    with Ledger(100, 160, PROGRAM, path) as ledger:
        assert ledger.num_left == 0
        assert ledger.result == whole(100, 60)


def test_a_finished_run_can_be_made_longer(tmp_path: Path) -> None:
    for end in (10, 25):
        with Ledger(0, end, PROGRAM, tmp_path / "state") as ledger:
            for seed in taken(ledger, 100):
                ledger.add(outcome(seed))
    assert ledger.result == whole(0, 25)


def test_the_file_is_written_once_a_second_and_at_the_end(tmp_path: Path) -> None:
    path, now = tmp_path / "state", [0.0]
    told: list[int | None] = []
    with Ledger(0, 5, PROGRAM, path, clock=lambda: now[0]) as ledger:
        for seed in taken(ledger, 5):
            now[0] += SAVE_EVERY_S / 2
            ledger.add(outcome(seed))
            told.append(json.loads(path.read_text(encoding="utf-8"))["next"] if path.exists() else None)
    assert told == [None, 2, 2, 4, 4]
    assert json.loads(path.read_text(encoding="utf-8"))["next"] == 5


@pytest.mark.parametrize(
    ("first", "program", "problem"),
    [(0, "fedcba9876543210", "another version of the program"), (1, PROGRAM, "begins with seed 0, not with 1")],
)
def test_seeds_of_another_program_or_other_seeds_are_not_mixed_in(
    tmp_path: Path, first: int, program: str, problem: str
) -> None:
    path = tmp_path / "state"
    with Ledger(0, 5, PROGRAM, path) as ledger:
        ledger.add(outcome(0))
    before = path.read_bytes()
    for _ in range(2):  # a refusal lets go of the file
        with pytest.raises(InvalidRequest, match=problem):
            Ledger(first, 5, program, path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"format": 2}', '{"format": 1, "program": "0123456789abcdef"}'])
def test_a_file_that_is_none_of_ours_is_refused_and_stays(tmp_path: Path, text: str) -> None:
    path = tmp_path / "state"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InvalidRequest, match="not the state of a run of seeds"):
        Ledger(0, 5, PROGRAM, path)
    assert path.read_text(encoding="utf-8") == text


@pytest.mark.parametrize("key", ["seeds", "tokens", "virtual_s", "drafted", "failed", "faults"])
def test_a_state_that_somebody_has_edited_is_refused_and_stays(tmp_path: Path, key: str) -> None:
    path = tmp_path / "state"
    with Ledger(0, 5, PROGRAM, path) as ledger:
        ledger.add(outcome(0))
    text = json.dumps(json.loads(path.read_bytes()) | {key: "many"})
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InvalidRequest, match="not the state of a run of seeds"):
        Ledger(0, 5, PROGRAM, path)
    assert path.read_text(encoding="utf-8") == text


def test_two_runs_can_not_share_a_file(tmp_path: Path) -> None:
    with Ledger(0, 5, PROGRAM, tmp_path / "state"), pytest.raises(InvalidRequest, match="in use"):
        Ledger(0, 5, PROGRAM, tmp_path / "state")
    Ledger(0, 5, PROGRAM, tmp_path / "state").__exit__(None, None, None)
