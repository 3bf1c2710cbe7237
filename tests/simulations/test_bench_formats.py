"""The table of formats: what it compares, and that it can be printed."""

import torch

from shoal.protocol.messages import WeightFormat
from shoal.simulations.bench import formats


def test_formats_without_codes_change_nothing_that_they_can_hold() -> None:
    weight = torch.randn(40, 136).bfloat16().float()
    for weight_format in (WeightFormat.F32, WeightFormat.BF16):
        assert torch.equal(formats.round_trip(weight, weight_format), weight)


def test_the_search_beats_absmax_on_every_layer_of_a_gaussian_expert() -> None:
    generator = torch.Generator().manual_seed(0)
    expert = {
        name: torch.randn(shape, generator=generator)
        for name, shape in (("gate", (64, 200)), ("up", (64, 200)), ("down", (200, 64)))
    }
    for weight_format, (group_size, high) in formats.ABSMAX_GRIDS.items():
        ours = formats.output_error(expert, lambda w, f=weight_format: formats.round_trip(w, f))  # type: ignore[misc]
        plain = formats.output_error(expert, lambda w, g=group_size, h=high: formats.absmax(w, g, h))  # type: ignore[misc]
        assert 0 < ours < plain


def test_a_row_is_printed_for_people() -> None:
    row = {
        "format": "int8_g128", "v3_expert_mb": 44.73, "gaussian": 0.01, "gaussian_absmax": None, "demo": 0.01,
        "demo_absmax": None, "bits_per_byte": 1.5, "perplexity": 9.0, "perplexity_ratio": 1.0,
    }  # fmt: skip
    printed = formats.table({"machine": {}, "commit": "abc", "num_bytes": 1, "rows": [row]})
    assert "int8_g128" in printed
    assert "commit abc" in printed
