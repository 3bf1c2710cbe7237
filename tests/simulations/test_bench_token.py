"""A token's parts add up to it, whatever was told; a flame graph is a picture of its samples and nothing else."""

import asyncio
import sys
import threading
from multiprocessing import get_context
from pathlib import Path
from xml.etree import ElementTree

import pytest

from shoal.protocol.errors import InvalidRequest
from shoal.protocol.events import Event, ExpertsTimed, LayerTimed, PassTaken
from shoal.protocol.ids import LayerId, PeerId
from shoal.simulations.bench.flame import Sampler, Stacks, stack_of, svg
from shoal.simulations.bench.token_budget import bench_token, tokens_of
from shoal.simulations.local import LocalSwarmSettings

PEER = PeerId("somebody")


def taken(total_s: float) -> PassTaken:
    return PassTaken(1, 1, 0, 1, 0, head_s=1.0, sampling_s=2.0, total_s=total_s)


def told() -> list[tuple[float, Event]]:
    """Two passes; the second begins at 102 and ends at 140: a dense layer and one with experts."""
    dense = LayerTimed(2, LayerId(0), 1, attention_s=3.0, route_s=0.0, experts_s=0.0)
    exchange = ExpertsTimed(LayerId(1), 1, 2, PEER, 5.0, 1.0, 2.0, 1.0, 0.0, 2.0)
    layer = LayerTimed(2, LayerId(1), 1, attention_s=4.0, route_s=1.0, experts_s=12.0)
    return [(100.0, taken(10.0)), (110.0, dense), (125.0, exchange), (126.0, layer), (140.0, taken(38.0))]


MARKS = [
    ("embed", 103.0), ("layers", 105.0), ("mlp", 106.0), ("mlp done", 107.0), ("mlp", 115.0), ("mlp done", 118.0),
    ("text", 137.0), ("text done", 137.5), ("embed", 141.0),
]  # fmt: skip


def test_the_parts_of_a_token_are_all_of_it() -> None:
    (token,) = tokens_of(told(), MARKS)
    assert token.total_s == 40.0
    assert sum(token.parts_s.values()) == pytest.approx(40.0)
    assert {name: seconds for name, seconds in token.parts_s.items() if seconds} == {
        "between": 2.0, "prepare": 1.0, "embedding": 2.0, "dense": 3.0, "attention": 4.0, "router": 1.0,
        "packing": 2.0, "wire": 5.0, "queue": 1.0, "compute": 2.0, "straggling": 1.0, "behind": 1.0,
        "head": 1.0, "sampling": 2.0, "text": 0.5, "rest": 11.5,
    }  # fmt: skip
    assert token.shared_s == 3.0, "the dense layer's feed-forward is not the shared expert's"


def test_one_pass_is_no_token() -> None:
    assert tokens_of(told()[:1], []) == []


def test_a_single_token_has_no_time() -> None:
    with pytest.raises(InvalidRequest):
        asyncio.run(bench_token(get_context("forkserver"), LocalSwarmSettings(Path(), 2), 1))


def test_a_stack_is_named_from_the_outside_in() -> None:
    stack = stack_of(sys._getframe())
    assert stack[-1] == "simulations/test_bench_token.py:test_a_stack_is_named_from_the_outside_in"
    assert stack_of(None) == ()


def test_a_sampler_ends_with_its_block_and_leaves_no_thread() -> None:
    before = threading.active_count()
    with Sampler().sampling():
        assert threading.active_count() == before + 1
    assert threading.active_count() == before


def test_a_picture_has_a_box_for_each_function_as_wide_as_its_samples() -> None:
    stacks = Stacks()
    stacks.counts.update({("a/b:main", "a/b:left <x>"): 3, ("a/b:main", "a/b:right"): 1, ("a/b:main",): 1})
    root, namespace = ElementTree.fromstring(svg(stacks, "a test & more")), "{http://www.w3.org/2000/svg}"
    titles = [each.text for each in root.iter(f"{namespace}title")]
    assert titles == ["a/b:main 100.0 %", "a/b:left <x> 60.0 %", "a/b:right 20.0 %"]
    assert stacks.folded().splitlines()[-1] == "a/b:main;a/b:right 1"
    widths = [float(each.get("width", "0")) for each in root.iterfind(f"{namespace}g/{namespace}rect")]
    assert widths == [1199.5, 719.5, 239.5]


def test_without_samples_there_is_no_picture() -> None:
    with pytest.raises(ValueError, match="no samples"):
        svg(Stacks(), "nothing")
