"""Known-answer probes: honest holders pass, wrong weights do not."""

from collections.abc import Iterator

import pytest
import torch

from shoal.experts import probe
from shoal.experts.backend import PackedExpert
from shoal.experts.manifest import Manifest, check_probe
from shoal.experts.reference_backend import ReferenceBackend
from shoal.experts.store import ModelStore
from shoal.protocol.errors import InvalidRequest
from shoal.protocol.ids import ExpertId, LayerId
from shoal.protocol.messages import Rounding
from tests.checkpoints import CheckpointShape, Stored, write_checkpoint

LAYER, EXPERT = LayerId(1), ExpertId(3)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelStore]:
    directory = tmp_path_factory.mktemp("model")
    shape = CheckpointShape(hidden=256, inter=200, num_experts=16, stored=Stored.FP8)
    write_checkpoint(directory, shape, seed=2)
    with ModelStore.open(directory, directory / "cache") as opened:
        yield opened


def _pack(store: ModelStore, expert: ExpertId) -> PackedExpert:
    return ReferenceBackend().pack(store.spec.expert, store.expert(LAYER, expert))


def _answer(packed: PackedExpert, expert: ExpertId, rounding: Rounding) -> torch.Tensor:
    x, row = probe.probe_input(LAYER, expert, packed.spec.hidden), torch.zeros(1, dtype=torch.int64)
    return ReferenceBackend().run([packed], x, row, [0, 1], torch.ones(1), rounding)[0]


def test_the_signs_never_change() -> None:
    signs = probe.probe_input(LayerId(3), ExpertId(7), 16)
    assert signs.tolist() == [SIGNS]
    assert probe.probe_input(LayerId(3), ExpertId(8), 16).tolist() != [SIGNS]
    assert probe.probe_input(LayerId(4), ExpertId(7), 16).tolist() != [SIGNS]


SIGNS = [1.0 if sign == "+" else -1.0 for sign in "+-++++--++++++++"]


@pytest.mark.parametrize("rounding", Rounding)
def test_every_honest_holder_passes_with_a_wide_margin(store: ModelStore, rounding: Rounding) -> None:
    for expert in map(ExpertId, range(16)):
        answer = _answer(_pack(store, expert), expert, rounding)
        assert check_probe(store.manifest, LAYER, expert, answer)
        expected = probe.decode_summary(store.manifest.probes[LAYER][expert])
        error = (probe.summarize(LAYER, expert, answer) - expected)[:-1].square().mean().sqrt() / expected[-1]
        assert error <= probe.TOLERANCE / 3


def test_another_expert_s_answer_fails(store: ModelStore) -> None:
    for expert in map(ExpertId, range(15)):
        other = _answer(_pack(store, ExpertId(expert + 1)), expert, Rounding.FP32)
        assert not check_probe(store.manifest, LAYER, expert, other)


def test_weights_of_a_coarser_format_fail(store: ModelStore) -> None:
    """int4 by absolute maximum over 128 columns: 10-20 % away."""
    packed = ReferenceBackend().pack(store.spec.expert, store.expert(LAYER, EXPERT))
    for weight in packed.weights.matrices:
        for columns in weight.split(128, dim=1):
            step = columns.abs().amax(dim=1, keepdim=True) / 7
            columns.copy_((columns / step).round() * step)
    assert not check_probe(store.manifest, LAYER, EXPERT, _answer(packed, EXPERT, Rounding.BF16))


def test_a_damaged_weight_matrix_fails(store: ModelStore) -> None:
    packed = ReferenceBackend().pack(store.spec.expert, store.expert(LAYER, EXPERT))
    packed.weights.up[:128, :128] *= 2  # one block scale with a flipped exponent bit
    assert not check_probe(store.manifest, LAYER, EXPERT, _answer(packed, EXPERT, Rounding.FP32))


def test_scaled_empty_or_infinite_answers_fail(store: ModelStore) -> None:
    right = _answer(_pack(store, EXPERT), EXPERT, Rounding.FP32)
    for wrong in (right * 1.03, right * 0, right * float("nan"), right * float("inf"), -right, right.roll(1)):
        assert not check_probe(store.manifest, LAYER, EXPERT, wrong)
    assert not check_probe(store.manifest, LAYER, EXPERT, right[None])


def test_an_expert_without_a_probe_is_an_invalid_request(store: ModelStore) -> None:
    right = _answer(_pack(store, EXPERT), EXPERT, Rounding.FP32)
    manifest: Manifest = store.manifest
    for layer, expert in ((LayerId(0), EXPERT), (LAYER, ExpertId(16)), (LAYER, ExpertId(-1))):
        with pytest.raises(InvalidRequest, match="no probe of expert"):
            check_probe(manifest, layer, expert, right)


def test_a_summary_survives_its_36_bytes() -> None:
    summary = probe.summarize(LAYER, EXPERT, torch.randn(50))
    assert len(probe.encode_summary(summary)) == probe.SUMMARY_BYTES == 36
    assert torch.equal(probe.decode_summary(probe.encode_summary(summary)), summary)


def test_projections_are_as_large_as_the_answer_on_average() -> None:
    ratios = []
    for expert in range(64):
        answer = torch.randn(128, generator=torch.Generator().manual_seed(expert))
        summary = probe.summarize(LAYER, ExpertId(expert), answer)
        ratios.append(float(summary[:-1].square().mean() / summary[-1].square()))
    assert 0.8 < sum(ratios) / len(ratios) < 1.2
