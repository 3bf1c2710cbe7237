"""What to hold, in a user's words: which experts of which layers. Where he has none, `placement.py` chooses."""

import re
from collections.abc import Sequence

from shoal.experts.family import ModelSpec
from shoal.protocol.errors import InvalidRequest
from shoal.protocol.ids import ExpertId, LayerId

Holding = dict[LayerId, tuple[ExpertId, ...]]
"""Experts by layer, ascending."""

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
