"""The table of reads from disk says each kind beside the same expert in memory."""

from shoal.simulations.bench.cold_experts import ColdTimes, table


def test_each_kind_of_request_stands_beside_one_that_found_its_expert_in_memory() -> None:
    times = ColdTimes([2.0, 4.0, 3.0], [30.0, 60.0, 45.0], [90.0, 150.0, 120.0], [100.0, 101.0, 102.0])
    lines = table(times, 24).splitlines()
    assert "24 experts of 44 MB, 3 rounds" in lines[0]
    assert [line.split()[-2] for line in lines[2:4]] == ["15.0", "40.0"]
    assert lines[4].startswith("announced read_ms")
    assert "101.0 (100.0-102.0) ms" in lines[4]
