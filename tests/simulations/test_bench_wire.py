"""The wire benchmark measures what it says, in two processes, and says on what."""

import asyncio
import json
from typing import Any

import pytest

from shoal.simulations.bench.machine import describe_machine, git_commit
from shoal.simulations.bench.wire import SHAPES, Shape, bench_wire, table


def test_the_shapes_are_the_sizes_that_the_design_names():
    assert [shape.num_bytes for shape in SHAPES] == [64, 14_336, 65_536, 262_144, 2**20]


def test_the_machine_is_described_without_guessing():
    machine = describe_machine()
    assert set(machine) == {"cpu", "cores", "kernel", "python", "tcp"}
    assert int(machine["cores"]) >= 1
    assert git_commit()


@pytest.mark.socket
def test_a_run_gives_a_row_per_shape_and_is_json():
    result = asyncio.run(bench_wire(20, kinds=("tls floor", "bare tls", "direct"), shapes=(Shape(1, 32), Shape(2, 64))))
    rows: Any = result["rows"]
    assert [(row["channel"], row["bytes"]) for row in rows] == [
        ("tls floor", 64), ("tls floor", 256), ("bare tls", 64), ("bare tls", 256), ("direct", 64), ("direct", 256),
    ]  # fmt: skip
    for row in rows:
        assert row["num_exchanges"] == 20
        assert 0 < row["overhead_ms_min"] <= row["overhead_ms_p50"] <= row["overhead_ms_p99"]
    assert json.loads(json.dumps(result)) == result
    assert "direct" in table(result)
