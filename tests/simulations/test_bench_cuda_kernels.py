"""The benchmark of the CUDA programs, on tiny shapes in Triton's interpreter; and what it says without a device."""

import pytest
import torch
from typer.testing import CliRunner

from shoal.cli.main import app
from shoal.experts.family import ExpertSpec
from shoal.kernels.cpu import Format
from shoal.protocol.errors import InvalidRequest
from shoal.protocol.messages import WeightFormat
from shoal.simulations.bench import cuda_kernels
from shoal.simulations.bench.cuda_kernels import Bench, HostClock, Limits, Load

TINY = Bench(
    torch.device("cpu"), HostClock(), ExpertSpec(hidden=64, inter=48), rotated_bytes=1, calls_per_block=2, rounds=2
)

no_device = pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a CUDA device")


@no_device
def test_every_row_of_the_table_is_made_of_one_run_and_says_its_shares() -> None:
    limits = cuda_kernels.probe(TINY, 1 << 12, 16)
    rows = cuda_kernels.measure(TINY, [Format.FP8_BLOCK, Format.BF16], [Load(1, 3), Load(4, 2)], limits)
    assert [(row["format"], row["experts"], row["tokens"]) for row in rows] == [
        ("fp8_block", 1, 3), ("fp8_block", 4, 8), ("bf16", 1, 3), ("bf16", 4, 8),
    ]  # fmt: skip
    assert all(isinstance(row[key], float) for row in rows for key in ("ratio", "copy_share", "matmul_share"))
    result: dict[str, object] = {
        "machine": "m", "commit": "c", "torch": "t", "copy_gb_per_s": 1, "matmul_tflop_per_s": 1, "rows": rows,
    }  # fmt: skip
    assert len(cuda_kernels.table(result).splitlines()) == 3 + len(rows)
    with pytest.raises(TypeError, match="bench_cuda_kernels"):
        cuda_kernels.table({"rows": 1})


@no_device
def test_both_sides_compute_the_same_so_that_their_ratio_means_something() -> None:
    for load in (Load(1, 3), Load(4, 2)):
        arguments = cuda_kernels._Arguments.of(TINY, load)
        ours = cuda_kernels._Ours(TINY, WeightFormat.BF16, 4)
        peer = cuda_kernels._TorchBf16(TINY, 4)
        answers = [side.calls_of(arguments, load.num_experts)[0]() for side in (ours, peer)]
        whole = ours.whole_calls_of(arguments, load.num_experts)[0]()
        assert isinstance(answers[0], torch.Tensor)
        assert isinstance(whole, torch.Tensor)
        assert torch.equal(answers[0], whole)
        torch.testing.assert_close(answers[0], answers[1], rtol=0.05, atol=0.05)


@no_device
def test_limits_are_the_best_of_all_rounds() -> None:
    class Given:
        def prepare(self, calls: object) -> object:
            samples = iter([2.0, 1.0])
            return lambda: next(samples)

    limits = cuda_kernels.probe(Bench(torch.device("cpu"), Given(), rounds=2), 1000, 10)  # type: ignore[arg-type]
    assert limits == Limits(2e-6, 2e-9)


@no_device
def test_without_a_device_it_is_one_clear_error() -> None:
    with pytest.raises(InvalidRequest, match="no such device"):
        cuda_kernels.bench_cuda_kernels([Format.BF16], [1])
    done = CliRunner().invoke(app, ["bench", "kernels", "--device", "cuda"])
    assert done.exit_code != 0
    assert "no such device" in done.output
    assert "Traceback" not in done.output


@pytest.mark.parametrize("arguments", [["--device", "tpu"], ["--device", "cuda", "--threads", "2"]])
def test_options_that_do_not_fit_together_are_refused(arguments: list[str]) -> None:
    done = CliRunner().invoke(app, ["bench", "kernels", *arguments])
    assert done.exit_code == 2
