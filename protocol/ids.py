"""The names that every package shares: peers, layers, experts."""

from typing import NewType

PeerId = NewType("PeerId", str)
"""A peer's identity: the base58 libp2p peer id of its Ed25519 key (`12D3Koo…`), which contains that key."""

LayerId = NewType("LayerId", int)
"""Index of a decoder layer as in the checkpoint (`model.layers.<LayerId>`), the MTP layers included."""

ExpertId = NewType("ExpertId", int)
"""Index of a routed expert inside its layer, 0 .. E-1."""
