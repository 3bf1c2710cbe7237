"""The tables of formats: what they compare, and that they can be made and printed from what the package ships."""

import math
from functools import partial
from pathlib import Path

import pytest
import torch

from shoal.experts.reference_backend import ReferenceBackend
from shoal.experts.specs import ExpertSpec
from shoal.kernels import cpu
from shoal.protocol.messages import WeightFormat
from shoal.simulations.bench import formats
from shoal.simulations.bench.kernel_errors import BOUND, kernel_errors, paths
from shoal.simulations.bench.perplexity import Score, compare
from shoal.simulations.bench.quantizers import (
    BASELINES,
    absmax_mxfp4,
    gaussian_expert,
    output_error,
    round_trip,
    weight_error,
)
from shoal.simulations.demo_model.corpus import load
from shoal.simulations.demo_model.held_out import HELD_OUT_FILE, choose, held_out_stories, write

SMALL = ExpertSpec(hidden=200, inter=64)


def test_formats_without_codes_change_nothing_that_they_can_hold() -> None:
    weight = torch.randn(40, 136).bfloat16().float()
    for weight_format in (WeightFormat.F32, WeightFormat.BF16):
        assert torch.equal(round_trip(weight, weight_format), weight)


@pytest.mark.parametrize("weight_format", list(BASELINES))
def test_the_search_beats_the_plain_scale(weight_format: WeightFormat) -> None:
    expert = gaussian_expert(SMALL)
    ours, plain = partial(round_trip, weight_format=weight_format), BASELINES[weight_format]
    assert 0 < output_error(expert, ours) < output_error(expert, plain)
    assert 0 < weight_error(list(expert.values()), ours) < weight_error(list(expert.values()), plain)


def test_plain_mxfp4_is_the_specifications() -> None:
    weight = torch.zeros(1, 32)
    weight[0, :6] = torch.tensor([7.9, -6.0, 0.2, 0.3, -2.4, 1.0])  # floor(log2(7.9)) - 2 = 0: steps of E2M1 itself
    assert absmax_mxfp4(weight)[0, :6].tolist() == [6.0, -6.0, 0.0, 0.5, -2.0, 1.0]
    assert absmax_mxfp4(weight * 2**-9)[0, :6].tolist() == (2**-9 * absmax_mxfp4(weight)[0, :6]).tolist()


def test_a_score_is_compared_in_bits_perplexity_and_tokens() -> None:
    better, worse = (Score(n, 50, torch.tensor(t)) for n, t in ((100 * math.log(2), [1, 2, 3, 4]), (150, [1, 2, 9, 4])))
    row = compare(worse, better)
    assert row["changed_tokens"] == 0.25
    assert compare(better, better) == {
        "bits_per_byte": 2.0, "perplexity": 2.0**25, "perplexity_ratio": 1.0, "changed_tokens": 0.0,
    }  # fmt: skip
    assert row["perplexity_ratio"] == pytest.approx(math.exp(150 / 4) / 2**25, rel=1e-3)


@pytest.mark.parametrize("weight_format", list(WeightFormat))
def test_every_path_keeps_its_promise_to_exact_arithmetic_and_to_the_others(weight_format: WeightFormat) -> None:
    measured = kernel_errors(weight_format, paths(threads=1), SMALL)
    errors, spread = measured["errors"], measured["spread"]
    assert isinstance(errors, dict)
    assert set(errors) == {"reference", *(cpu.available_isas() if cpu.is_available() else ())}
    assert all(1e-4 < error <= BOUND for error in errors.values())
    assert isinstance(spread, float)
    assert spread <= BOUND


def test_the_shipped_text_is_the_held_out_english_of_the_sources(tmp_path: Path) -> None:
    stories = choose(load())
    assert held_out_stories() == stories
    assert all(story.is_held_out and story.author and story.licence.startswith("CC-BY") for story in stories)
    write(stories, tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == HELD_OUT_FILE.read_bytes()


def test_the_whole_command_runs_and_is_printed_for_people(monkeypatch: pytest.MonkeyPatch) -> None:
    small = partial(kernel_errors, spec=SMALL)
    monkeypatch.setattr(formats, "kernel_errors", small)
    monkeypatch.setattr(formats, "paths", lambda _: {"reference": ReferenceBackend()})
    before = torch.get_num_threads()
    try:
        result = formats.bench_formats([WeightFormat.BF16, WeightFormat.INT4_G128], num_documents=1)
    finally:
        torch.set_num_threads(before)
    printed = formats.table(result)
    rows = result["rows"]
    assert isinstance(rows, list)
    same, coarse = rows
    assert (same["changed_tokens"], same["perplexity_ratio"], same["demo_weights"]) == (0.0, 1.0, 0.0)
    assert 0 < coarse["changed_tokens"] < 0.3
    assert "int4_g128" in printed
    assert f"commit {result['commit']}" in printed
