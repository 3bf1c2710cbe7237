"""How a local swarm deals experts to nodes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.protocol.errors import InvalidRequest
from shoal.simulations.local import holdings


@given(st.integers(1, 64), st.integers(1, 64), st.integers(1, 256))
def test_every_expert_has_at_least_the_wanted_replicas_and_nodes_hold_about_alike(
    num_nodes: int, replicas: int, num_experts: int
) -> None:
    if replicas > num_nodes:
        with pytest.raises(InvalidRequest):
            holdings(num_nodes, replicas, num_experts)
        return
    counts = [0] * num_experts
    sizes = []
    for words in holdings(num_nodes, replicas, num_experts):
        first, last = (int(word) for word in words.split("-"))
        sizes.append(last - first + 1)
        for expert in range(first, last + 1):
            counts[expert] += 1
    assert min(counts) >= replicas
    assert max(sizes) - min(sizes) <= 1
