"""What to hold: a user's words, or rarity within a budget, as a pure function of what the swarm already has.

Units are whole routing groups of one layer where they fit: a token uses at most `topk_groups` groups, so holders of
whole groups bound the fan-out of a layer (DESIGN §1). Knows no network: coverage comes in as counts.
"""

import re
from collections.abc import Mapping, Sequence
from itertools import islice

from blake3 import blake3

from shoal.experts.family import ModelSpec
from shoal.protocol.errors import InvalidRequest
from shoal.protocol.ids import ExpertId, LayerId, PeerId

Holding = dict[LayerId, tuple[ExpertId, ...]]
"""Experts by layer, ascending."""

ReplicaCounts = Mapping[tuple[LayerId, ExpertId], int]

_RANGE = re.compile(r"(\d{1,5})(?:-(\d{1,5}))?")


def parse_holding(words: str, spec: ModelSpec) -> Holding:
    """Read `all`, `0-15`, `3:0-31,4:5`: [layer[-layer]:]expert[-expert], separated by commas.

    Raises:
        InvalidRequest: not of that form, or outside the model.
    """
    wanted: dict[LayerId, set[ExpertId]] = {}
    for part in words.split(","):
        layers, experts = _parse_part(part.strip(), spec)
        for layer in layers:
            wanted.setdefault(layer, set()).update(experts)
    return {layer: tuple(sorted(wanted[layer])) for layer in sorted(wanted)}


def _parse_part(part: str, spec: ModelSpec) -> tuple[list[LayerId], list[ExpertId]]:
    all_experts = range(spec.router.num_experts)
    layer_words, _, expert_words = ("", "", f"0-{all_experts[-1]}") if part == "all" else part.rpartition(":")
    layers = _select(layer_words, spec.moe_layers, "layer") if layer_words else spec.moe_layers
    experts = _select(expert_words, all_experts, "expert")
    return [LayerId(layer) for layer in layers], [ExpertId(expert) for expert in experts]


def _select(words: str, known: Sequence[int], what: str) -> list[int]:
    match = _RANGE.fullmatch(words)
    if match is None:
        raise InvalidRequest(f"{words!r} is no {what} or range of {what}s; write e.g. 3 or 0-15")
    first, last = int(match[1]), int(match[2] or match[1])
    chosen = [item for item in known if first <= item <= last]
    if not chosen or first not in known or last not in known:
        raise InvalidRequest(f"{what} {words} is outside the model, which has {known[0]}-{known[-1]}")
    return chosen


def assign(spec: ModelSpec, counts: ReplicaCounts, num_experts: int, peer: PeerId) -> Holding:
    """Choose up to `num_experts` experts: rarest groups first, ties by a hash with our peer id.

    The hash lets nodes that join at the same moment, seeing the same swarm, choose differently.
    """
    units = [
        (min(counts.get((layer, expert), 0) for expert in group), _tie(peer, layer, group[0]), layer, group)
        for layer in spec.moe_layers
        for group in _groups(spec)
    ]
    chosen: dict[LayerId, list[ExpertId]] = {}
    left = num_experts
    for _, _, layer, group in sorted(units):
        taken = list(islice(group, left))
        if not taken:
            break
        chosen.setdefault(layer, []).extend(taken)
        left -= len(taken)
    return {layer: tuple(sorted(chosen[layer])) for layer in sorted(chosen)}


def _groups(spec: ModelSpec) -> list[tuple[ExpertId, ...]]:
    size = spec.router.num_experts // spec.router.num_groups
    return [tuple(ExpertId(i) for i in range(start, start + size)) for start in range(0, spec.router.num_experts, size)]


def _tie(peer: PeerId, layer: LayerId, first: ExpertId) -> bytes:
    return blake3(f"{peer} {layer} {first}".encode()).digest(8)
