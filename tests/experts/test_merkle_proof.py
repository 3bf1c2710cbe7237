"""A proof: it leads to the root for every expert of every shape of tree, and any change of it does not."""

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.experts.manifest import Manifest, TrunkLeaf
from shoal.experts.merkle_proof import ExpertProof, check_proof, decode_proof, prove_expert
from shoal.protocol.errors import CheckpointError, InvalidRequest
from shoal.protocol.ids import ExpertId, LayerId
from shoal.protocol.messages import WeightFormat


def manifest_of(num_trunk: int, layers: dict[int, int]) -> Manifest:
    return Manifest(
        model_type="deepseek_v3",
        weight_format=WeightFormat.F32,
        config_digest=bytes(32),
        trunk={f"t{i}": TrunkLeaf("F32", (1,), bytes([i]) * 32) for i in range(num_trunk)},
        experts={LayerId(layer): tuple(bytes([layer, i]) * 16 for i in range(n)) for layer, n in layers.items()},
        probes={},
    )


@given(st.integers(0, 9), st.dictionaries(st.integers(0, 40), st.integers(1, 9), min_size=1, max_size=4))
def test_every_expert_of_every_tree_has_a_proof_that_leads_to_the_root(num_trunk: int, layers: dict[int, int]) -> None:
    manifest = manifest_of(num_trunk, layers)
    for layer, count in layers.items():
        for expert in range(count):
            raw = prove_expert(manifest, LayerId(layer), ExpertId(expert)).encode()
            check_proof(decode_proof(raw), manifest.root)


def test_the_bytes_of_a_proof_never_change() -> None:
    proof = prove_expert(manifest_of(1, {3: 2}), LayerId(3), ExpertId(1))
    assert proof.encode().hex() == (
        "7368 6f61 6c6d 7031 0300 0000 0100 0000 0300 0000 0400 0000".replace(" ", "")
        + "0301" * 16
        + "02"
        + "".join(sibling.hex() for sibling in proof.siblings)
    )
    assert len(proof.encode()) == 57 + 2 * 32


def test_a_proof_of_deepseek_v3_is_half_a_kilobyte() -> None:
    proof = prove_expert(manifest_of(200, dict.fromkeys(range(3, 62), 256)), LayerId(40), ExpertId(200))
    assert len(proof.encode()) == 57 + 14 * 32


def test_every_flipped_bit_of_a_proof_is_refused() -> None:
    manifest = manifest_of(3, {3: 5, 4: 5})
    raw = bytearray(prove_expert(manifest, LayerId(4), ExpertId(2)).encode())
    position_of_index = range(16, 24)
    for position in range(len(raw)):
        for bit in range(8):
            raw[position] ^= 1 << bit
            if position not in position_of_index:  # place and number carry no trust: see the next test
                with pytest.raises(CheckpointError):
                    check_proof(decode_proof(bytes(raw)), manifest.root)
            raw[position] ^= 1 << bit


def test_a_lie_about_the_leaf_s_place_never_proves_another_expert() -> None:
    manifest = manifest_of(3, {3: 5, 4: 5})
    right = prove_expert(manifest, LayerId(4), ExpertId(2))
    chooser = random.Random(1)
    for _ in range(2000):
        count = chooser.randrange(1, 40)
        lie = replace(
            right, layer=LayerId(chooser.randrange(3, 5)), expert=ExpertId(chooser.randrange(5)),
            index=chooser.randrange(count), num_leaves=count,
        )  # fmt: skip
        if (lie.layer, lie.expert) != (right.layer, right.expert):
            with pytest.raises(CheckpointError):
                check_proof(lie, manifest.root)


@pytest.mark.parametrize("change", [-1, 1])
def test_a_proof_with_a_sibling_too_few_or_too_many_is_refused(change: int) -> None:
    manifest = manifest_of(3, {3: 5})
    proof = prove_expert(manifest, LayerId(3), ExpertId(0))
    siblings = (*proof.siblings, bytes(32)) if change > 0 else proof.siblings[:-1]
    with pytest.raises(CheckpointError, match="siblings"):
        check_proof(replace(proof, siblings=siblings), manifest.root)


@pytest.mark.parametrize("raw", [b"", b"shoalmp1", b"x" * 57, b"shoalmp1" + b"\xff" * 49])
def test_bytes_that_are_no_proof_are_refused(raw: bytes) -> None:
    with pytest.raises(CheckpointError, match="proof"):
        decode_proof(raw)


def test_an_expert_that_is_not_there_has_no_proof() -> None:
    with pytest.raises(InvalidRequest, match="no expert 9"):
        prove_expert(manifest_of(1, {3: 2}), LayerId(3), ExpertId(9))
    assert isinstance(prove_expert(manifest_of(0, {3: 1}), LayerId(3), ExpertId(0)), ExpertProof)
