"""What a directory's answer says of a whole model, for people: replicas, what is rare or coming, what anchors have.

Pure. Counts as `survey.py` does: what is on disks only, and other weight formats, are no replicas; the node that asks
counts as any.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from shoal.node.holdings.placement import TARGET_REPLICAS
from shoal.protocol.control import Coverage, LayerCoverage, RareExpert
from shoal.protocol.ids import ExpertId, LayerId, PeerId
from shoal.protocol.messages import WeightFormat
from shoal.protocol.records import HolderRecord

MAX_RAREST = 5
"""Experts that are named one by one: the worst few say where to begin, the layers say the rest."""


@dataclass(frozen=True, slots=True)
class Extent:
    """What is to be covered: a model in one format. `expert_bytes`: memory of one expert here."""

    root: bytes
    layers: tuple[LayerId, ...]
    experts_per_layer: int
    expert_bytes: int
    weight_format: WeightFormat


@dataclass(slots=True)
class _Layer:
    """One layer while its records are counted."""

    replicas: list[int]
    coming: set[ExpertId] = field(default_factory=set)
    anchored: set[ExpertId] = field(default_factory=set)

    @property
    def anchor_only(self) -> set[ExpertId]:
        return {expert for expert in self.anchored if not self.replicas[expert]}

    @property
    def num_rare(self) -> int:
        return sum(count < TARGET_REPLICAS for count in self.replicas)


def coverage_of(extent: Extent, found: Mapping[LayerId, Sequence[HolderRecord]]) -> Coverage:
    """Add up a directory's answer."""
    layers = {layer: _Layer([0] * extent.experts_per_layer) for layer in extent.layers}
    holders: set[PeerId] = set()
    readers: set[PeerId] = set()
    for record in (record for layer in extent.layers for record in found.get(layer, ())):
        if not _fits(record, extent):
            continue
        if record.experts:
            holders.add(record.peer)
        if record.cold:
            readers.add(record.peer)
        _count(layers[record.layer], record)
    counts = [count for layer in layers.values() for count in layer.replicas]
    return Coverage(
        model_root=extent.root.hex(),
        num_holders=len(holders),
        num_experts=len(counts),
        num_missing=counts.count(0),
        min_replicas=min(counts),
        worst_layer=min(layers, key=lambda layer: (min(layers[layer].replicas), sum(layers[layer].replicas))),
        expert_bytes=extent.expert_bytes,
        layers=tuple(_shown(layer, each) for layer, each in layers.items()),
        num_anchors=len(readers - holders),
        target_replicas=TARGET_REPLICAS,
        num_rare=sum(layer.num_rare for layer in layers.values()),
        num_coming=sum(len(layer.coming) for layer in layers.values()),
        num_anchor_only=sum(len(layer.anchor_only) for layer in layers.values()),
        rarest=_rarest(layers),
    )


def ranges(experts: Iterable[ExpertId]) -> str:
    """`0-15,20` for expert ids."""
    runs: list[list[int]] = []
    for expert in sorted(experts):
        if runs and expert == runs[-1][1] + 1:
            runs[-1][1] = expert
        else:
            runs.append([expert, expert])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def _fits(record: HolderRecord, extent: Extent) -> bool:
    is_within = max(record.experts | record.coming | record.cold, default=0) < extent.experts_per_layer
    return is_within and record.weight_format == extent.weight_format


def _count(layer: _Layer, record: HolderRecord) -> None:
    layer.anchored |= record.cold
    layer.coming |= record.coming - record.experts
    for expert in record.experts:
        layer.replicas[expert] += 1


def _shown(layer: LayerId, counted: _Layer) -> LayerCoverage:
    return LayerCoverage(
        layer, tuple(counted.replicas), counted.num_rare, ranges(counted.coming), ranges(counted.anchor_only)
    )


def _rarest(layers: Mapping[LayerId, _Layer]) -> tuple[RareExpert, ...]:
    rare = [
        (count, layer, expert)
        for layer, counted in layers.items()
        for expert, count in enumerate(counted.replicas)
        if count < TARGET_REPLICAS
    ]
    return tuple(RareExpert(layer, expert, count) for count, layer, expert in sorted(rare)[:MAX_RAREST])
