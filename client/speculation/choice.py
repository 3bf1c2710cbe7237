"""Which drafter a client gets, by its settings, its checkpoint and its memory. Runs once, when a model is opened."""

from enum import StrEnum

from shoal.client.speculation.drafter import Drafter
from shoal.client.speculation.first_of import FirstOf
from shoal.client.speculation.mtp_drafter import MtpDrafter
from shoal.client.speculation.ngram import NgramDrafter
from shoal.experts.store import ModelStore
from shoal.protocol.errors import InvalidRequest
from shoal.protocol.ids import LayerId

MEMORY_SHARE = 0.25
"""Of the memory that is free before the trunk is loaded: what MTP's experts may take (DeepSeek-V3's: 11.3 GB)."""

MIN_MATCH_ALONE = 2
"""Where there is no MTP to ask instead, shorter matches are guesses worth verifying."""


class Speculation(StrEnum):
    """Who drafts."""

    OFF = "off"
    AUTO = "auto"
    """The MTP layer, where the checkpoint has one that fits in memory; the text itself where it repeats."""
    MTP = "mtp"
    NGRAM = "ngram"


def drafts_by_mtp(choice: Speculation, store: ModelStore, expert_bytes: int, free_bytes: int) -> bool:
    """Whether MTP's experts are to run in this process. Blocking: it may look through a store of pieces.

    Through the swarm each draft would cost a round trip of its own, a quarter of a pass of the demonstration model.

    Raises:
        InvalidRequest: `mtp` was asked for, and the checkpoint has none, its experts are not on this machine or memory
        has no room for them.
    """
    if choice not in (Speculation.AUTO, Speculation.MTP):
        return False
    layer = LayerId(store.spec.num_layers)
    has_layer = layer in store.spec.moe_layers
    is_here = store.has_experts(layer)
    needed = store.spec.router.num_experts * expert_bytes
    fits = needed <= MEMORY_SHARE * free_bytes
    if choice is Speculation.MTP and not has_layer:
        raise InvalidRequest("speculate is 'mtp', and the checkpoint has no MTP layer; try 'ngram'")
    if choice is Speculation.MTP and not is_here:
        raise InvalidRequest(
            f"speculate is 'mtp', and its experts are not here; try 'ngram', or: shoal models pull {store.name}"
            f" --experts {layer}:0-{store.spec.router.num_experts - 1}"
        )
    if choice is Speculation.MTP and not fits:
        raise InvalidRequest(
            f"speculate is 'mtp', and its experts need {needed} bytes, more than a quarter of what is free; try 'ngram'"
        )
    return is_here and fits


def choose_drafter(choice: Speculation, by_mtp: MtpDrafter | None = None) -> Drafter | None:
    """The drafter of a choice; by_mtp: there if `drafts_by_mtp` wanted it.

    Raises:
        InvalidRequest: `mtp` without one.
    """
    match choice:
        case Speculation.OFF:
            return None
        case Speculation.MTP:
            if by_mtp is None:
                raise InvalidRequest("speculate is 'mtp', and no MTP layer was loaded")
            return by_mtp
        case Speculation.AUTO if by_mtp is not None:
            return FirstOf(NgramDrafter(), by_mtp)
        case _:
            return NgramDrafter(MIN_MATCH_ALONE)
