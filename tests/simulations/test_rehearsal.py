"""The checkpoint without weights is the published one in all that is public; a small rehearsal keeps its promises."""

import asyncio
import math
import os
from pathlib import Path

import pytest

from shoal.experts.checkpoint import Checkpoint
from shoal.experts.family import model_spec
from shoal.experts.manifest import load_manifest
from shoal.experts.manifest_maker import Making, make_manifest
from shoal.node.holdings.placement import Shape
from shoal.protocol.ids import ExpertId, LayerId, PeerId
from shoal.simulations.rehearsal.__main__ import put_table
from shoal.simulations.rehearsal.assigning import own_choice
from shoal.simulations.rehearsal.fetching import expert_words
from shoal.simulations.rehearsal.layout import DEEPSEEK_V3_1, PublishedShape, Tensor, files, tensors
from shoal.simulations.rehearsal.report import report
from shoal.simulations.rehearsal.run import Rehearsal, RehearsalSettings, rehearse
from shoal.simulations.rehearsal.sparse import filler, write_sparse

pytestmark = pytest.mark.socket

SMALL = PublishedShape(
    hidden=256, dense_inter=384, inter=128, num_layers=4, num_dense_layers=1, num_experts=16, num_groups=4,
    topk_groups=2, top_k=4, num_heads=2, q_lora_rank=64, kv_lora_rank=32, qk_nope_head_dim=16, qk_rope_head_dim=16,
    v_head_dim=16, vocab_size=512, stages=(2,), file_elements=600_000,
)  # fmt: skip
EXPERT_BYTES = 3 * 128 * 256 + 3 * 4 * 2
SETTINGS = RehearsalSettings(SMALL, share_bytes=10 * EXPERT_BYTES, num_nodes=20, hours=0.2, num_jobs=1, steps=(3,))


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Rehearsal:
    return asyncio.run(rehearse(SETTINGS, tmp_path_factory.mktemp("rehearsal"), dict(os.environ)))


def test_the_layout_is_the_published_one_in_every_number_that_is_public() -> None:
    """Counts: a dump of DeepSeek-R1's tensors (model-and-kernels §A2). Sizes: as `ls -lh` shows them to those who have
    the files, in GiB, rounded up to a tenth."""
    parts = files(DEEPSEEK_V3_1)
    assert (len(parts), sum(map(len, parts.values()))) == (163, 91_991)
    assert sum(tensor.num_elements for tensor in tensors(DEEPSEEK_V3_1)) == 684_531_386_000
    sizes = [sum(tensor.size_bytes for tensor in part) for part in parts.values()]
    tenths = {number: math.ceil(10 * size / 2**30) for number, size in enumerate(sizes, 1)}
    odd = {1: 49, 12: 13, 34: 17, 56: 17, 78: 17, 100: 17, 122: 17, 141: 30, 160: 49, 163: 62}
    assert tenths == dict.fromkeys(range(1, 164), 41) | odd
    place = {tensor.name: file for file, part in parts.items() for tensor in part}
    assert place["lm_head.weight"] == place["model.norm.weight"] == "model-00160-of-000163.safetensors"
    assert place["model.layers.61.eh_proj.weight"] == "model-00163-of-000163.safetensors"


def test_filler_is_finite_and_the_same_for_the_same_name() -> None:
    import torch

    for dtype, kind in (("F8_E4M3", torch.float8_e4m3fn), ("BF16", torch.bfloat16), ("F32", torch.float32)):
        tensor = Tensor("model.layers.3.mlp.experts.0.up_proj.weight", dtype, (96, 200))
        values = torch.frombuffer(bytearray(filler(tensor)), dtype=kind).float()
        assert values.isfinite().all()
        assert values.abs().max() > 0
        assert filler(tensor) == filler(tensor) != filler(Tensor("another", dtype, (96, 200)))


def test_a_sparse_checkpoint_opens_as_a_real_one_with_all_its_experts(tmp_path: Path) -> None:
    made = write_sparse(tmp_path / "model", SMALL, lambda name: name.startswith("model.layers.3."))
    assert made.num_files == len(files(SMALL)) > 3
    with Checkpoint.open(made.directory) as checkpoint:
        for file in checkpoint.files:
            checkpoint.open_file(file)
        assert checkpoint.read("model.layers.3.mlp.experts.5.up_proj.weight").data.float().count_nonzero() > 0
        assert checkpoint.read("model.layers.2.mlp.experts.5.up_proj.weight").data.float().count_nonzero() == 0


def test_what_was_hashed_is_what_a_whole_manifest_says(found: Rehearsal) -> None:
    directory = found.checkpoint.directory
    partly, whole = load_manifest(directory / "shoal.manifest.json"), found.hashed.manifest
    assert partly.root == whole.root
    made = make_manifest(directory, making=Making(is_probed=False))
    layers = {layer for layer in made.experts if made.experts[layer] == partly.experts[layer]}
    [hashed] = own_choice(Shape.of(model_spec(SMALL.config())), 10, PeerId("rehearsal"))
    differing = [e for e in range(16) if made.experts[hashed][e] != partly.experts[hashed][e]]
    assert layers == set(), "only the layer that was read could be equal, and one bit of it was flipped since"
    assert len(differing) == 1


def test_a_fetch_costs_its_pieces_and_the_index_manifest_config_and_headers_and_nothing_else(found: Rehearsal) -> None:
    pulls = [*(each.first for each in found.published), found.whole]
    for pull in pulls:
        assert pull.piece_bytes == pull.num_experts * EXPERT_BYTES
    assert [pull.num_experts for pull in pulls] == [3, 10]
    assert found.planned_bytes == 10 * EXPERT_BYTES
    assert tuple(pull.wire_bytes for pull in pulls) == found.expected_wire_bytes


def test_the_second_fetch_reads_neither_index_nor_manifest_again(found: Rehearsal) -> None:
    for each in found.published:
        header_bytes = each.second.wire_bytes - each.second.num_experts * EXPERT_BYTES
        assert header_bytes < found.checkpoint.header_bytes, "headers of files that are new to it, at most"
        assert header_bytes < found.manifest_bytes


def test_with_a_layout_a_fetch_costs_its_pieces_manifest_config_and_layout_and_the_second_its_pieces(
    found: Rehearsal,
) -> None:
    config_bytes = (found.checkpoint.directory / "config.json").stat().st_size
    fixed_bytes = found.manifest_bytes + config_bytes + found.layout_bytes
    for each in found.told:
        assert each.first.wire_bytes == each.first.num_experts * EXPERT_BYTES + fixed_bytes
        assert each.second.wire_bytes == each.second.num_experts * EXPERT_BYTES


def test_what_was_fetched_is_whole_and_a_flipped_bit_at_the_hub_is_refused(found: Rehearsal) -> None:
    assert (found.verified_bytes > 10 * EXPERT_BYTES, found.num_damaged) == (True, 0)
    assert found.refused.status == 6
    assert "not the manifest's" in found.refused.words


def test_moves_leave_two_holders_of_what_they_give_up(found: Rehearsal) -> None:
    churn = found.assigned.churn
    assert churn.least_after_giving_up is None or churn.least_after_giving_up >= 2
    assert found.assigned.min_replicas >= 1


def test_the_report_is_one_table_that_a_page_takes_between_its_marks(found: Rehearsal, tmp_path: Path) -> None:
    table = report(found, {"cpu": "a processor", "cores": 2, "kernel": "Linux"}, "abc", "2026-01-01")
    assert "2026-01-01, commit abc, a processor, 2 cores, Linux" in table
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- table -->\nold\n<!-- end of table -->\nafter\n")
    put_table(page, table)
    assert page.read_text() == f"before\n<!-- table -->\n\n{table}\n<!-- end of table -->\nafter\n"


def test_a_holding_in_words_names_runs() -> None:
    holding = {LayerId(3): tuple(map(ExpertId, (0, 1, 2, 7))), LayerId(5): (ExpertId(4),)}
    assert expert_words(holding) == "3:0-2,3:7,5:4"
