"""Which drafter a client gets, by its settings, its checkpoint and its memory. Runs once, when a model is opened."""

from enum import StrEnum

from shoal.client.speculation.drafter import Drafter
from shoal.client.speculation.first_of import FirstOf
from shoal.client.speculation.mtp_drafter import MtpDrafter
from shoal.client.speculation.ngram import NgramDrafter
from shoal.client.trunk.moe import RoutedExperts
from shoal.client.trunk.mtp import Mtp
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
    """Whether MTP's experts are to run in this process.

    Through the swarm each draft would cost a round trip of its own, a quarter of a pass of the demonstration model.

    Raises:
        InvalidRequest: `mtp` was asked for, and the checkpoint has none or memory has no room for it.
    """
    if choice not in (Speculation.AUTO, Speculation.MTP):
        return False
    has_layer = LayerId(store.spec.num_layers) in store.spec.moe_layers
    needed = store.spec.router.num_experts * expert_bytes
    fits = needed <= MEMORY_SHARE * free_bytes
    if choice is Speculation.MTP and not has_layer:
        raise InvalidRequest("speculate is 'mtp', and the checkpoint has no MTP layer; try 'ngram'")
    if choice is Speculation.MTP and not fits:
        raise InvalidRequest(
            f"speculate is 'mtp', and its experts need {needed} bytes, more than a quarter of what is free; try 'ngram'"
        )
    return has_layer and fits


def choose_drafter(choice: Speculation, mtp: Mtp | None, experts: RoutedExperts) -> Drafter | None:
    """The drafter of a choice; mtp: the layer, if `drafts_by_mtp` wanted it; experts: its own."""
    if choice is Speculation.OFF:
        return None
    if mtp is None:
        return NgramDrafter(MIN_MATCH_ALONE)
    by_mtp = MtpDrafter(mtp, experts)
    return by_mtp if choice is Speculation.MTP else FirstOf(NgramDrafter(), by_mtp)
