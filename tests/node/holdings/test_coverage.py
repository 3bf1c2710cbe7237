"""What `shoal coverage` counts: replicas as healing counts them, what is rare, what is coming, what anchors have."""

from hypothesis import given
from hypothesis import strategies as st

from shoal.node.holdings.coverage import MAX_RAREST, Extent, coverage_of, ranges
from shoal.protocol.control import RareExpert
from shoal.protocol.ids import ExpertId, LayerId
from shoal.protocol.messages import WeightFormat
from shoal.protocol.records import HolderRecord
from tests.node.holdings.test_takeover import record

EXTENT = Extent(b"r" * 32, (LayerId(1), LayerId(2)), 8, 10, WeightFormat.FP8_BLOCK)


def directory(*records: HolderRecord) -> dict[LayerId, list[HolderRecord]]:
    return {layer: [each for each in records if each.layer == layer] for layer in EXTENT.layers}


def test_an_anchor_is_no_replica_and_what_only_it_has_is_said() -> None:
    said = coverage_of(EXTENT, directory(record("a", range(4)), record("b", range(0), cold=range(8))))
    assert said.layers[0].replicas == (1, 1, 1, 1, 0, 0, 0, 0)
    assert (said.layers[0].anchor_only, said.layers[1].anchor_only) == ("4-7", "")
    assert (said.num_holders, said.num_anchors, said.num_missing, said.num_anchor_only) == (1, 1, 12, 4)


def test_what_a_holder_has_on_disk_is_no_replica_of_it_and_makes_it_no_anchor() -> None:
    said = coverage_of(EXTENT, directory(record("a", range(4), cold=range(4, 6)), record("b", range(5), layer=2)))
    assert said.layers[0].replicas == (1, 1, 1, 1, 0, 0, 0, 0)
    assert said.layers[0].anchor_only == "4-5"
    assert (said.num_holders, said.num_anchors, said.num_anchor_only) == (2, 0, 2)


def test_what_has_fewer_replicas_than_the_target_is_rare_by_layer_and_in_all() -> None:
    said = coverage_of(EXTENT, directory(record("a", range(8)), record("b", range(6)), record("c", range(8), layer=2)))
    assert [layer.num_rare for layer in said.layers] == [2, 8]
    assert said.num_rare == 10


def test_what_is_coming_is_no_replica_yet_and_is_said() -> None:
    """Of a holder that has nothing else in the layer, too."""
    newcomer = record("a", range(0), coming=range(2, 5))
    said = coverage_of(EXTENT, directory(newcomer, record("b", range(3), coming=range(2, 4))))
    assert said.layers[0].coming == "2-4"
    assert said.layers[0].replicas == (1, 1, 1, 0, 0, 0, 0, 0)
    assert (said.num_coming, said.num_holders) == (3, 1)


def test_another_weight_format_and_experts_that_the_model_lacks_do_not_count() -> None:
    other = record("a", range(8), weight_format=WeightFormat.INT4_G32)
    said = coverage_of(EXTENT, directory(other, record("b", range(4, 9)), record("c", range(2), coming=range(9))))
    assert (said.num_holders, said.num_missing, said.num_coming) == (0, 16, 0)


def test_the_rarest_come_first_and_are_few() -> None:
    said = coverage_of(EXTENT, directory(record("a", range(8)), record("b", range(1, 8), layer=2)))
    assert said.rarest[:2] == (RareExpert(2, 0, 0), RareExpert(1, 0, 1))
    assert len(said.rarest) == MAX_RAREST


def test_a_swarm_with_two_of_everything_has_nothing_rare() -> None:
    records = [record(peer, range(8), layer=layer) for peer in "ab" for layer in (1, 2)]
    said = coverage_of(EXTENT, directory(*records))
    assert (said.num_rare, said.rarest, said.min_replicas, said.num_missing) == (0, (), 2, 0)


@given(st.frozensets(st.integers(0, 40)))
def test_ranges_name_every_expert_once(experts: frozenset[int]) -> None:
    named = [part.partition("-") for part in ranges(map(ExpertId, experts)).split(",") if part]
    assert [e for first, _, last in named for e in range(int(first), int(last or first) + 1)] == sorted(experts)
