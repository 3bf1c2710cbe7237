"""What a running node says of itself and of its model: to its user, its control socket and its log.

Values only; `daemon.py` makes them when a node is up.
"""

from dataclasses import dataclass, field

from shoal.experts.backend import ExpertBackend
from shoal.experts.store import ModelStore
from shoal.node.addresses import for_own_token
from shoal.node.announcer import Claim
from shoal.node.holdings.assignment import Holding
from shoal.node.holdings.joining import Choice
from shoal.node.holdings.keeper import Keeper
from shoal.node.seeding.library import Library
from shoal.node.settings import NodeSettings
from shoal.protocol.ids import LayerId, PeerId
from shoal.protocol.invite import Invite, encode_invite
from shoal.protocol.messages import WeightFormat
from shoal.protocol.net.entry import Entry


@dataclass(frozen=True, slots=True)
class NodeInfo:
    """What a running node tells its user. `join`: multiaddrs; `invite`: the same, the model's root and our
    membership as one token, which is a secret if `is_private`."""

    peer: PeerId
    model_root: str
    join: tuple[str, ...]
    invite: str = field(repr=False)
    is_private: bool
    addresses: tuple[str, ...]
    num_experts: int
    resident_bytes: int
    p2pd_pid: int
    """Our p2pd: it ends by itself within seconds when this process is killed."""
    choice: Choice | None = None
    """What it holds and why, if that was left to the node."""
    num_missing: int = 0
    """Experts that it is about to hold, and that are on their way from peers."""
    missing_bytes: int = 0
    """What these have, headers aside."""
    num_cold: int = 0
    """Experts that it reads from disk when it is asked for them."""
    read_ms: int = 0
    """What reading one of them takes."""


@dataclass(frozen=True, slots=True)
class NodeModel:
    """What a node knows of its model. `experts_per_token`: in all its layers together."""

    name: str
    root: bytes
    layers: tuple[LayerId, ...]
    experts_per_layer: int
    experts_per_token: int
    expert_bytes: int
    weight_format: WeightFormat
    kernel: str


def model_of(settings: NodeSettings, store: ModelStore, backend: ExpertBackend) -> NodeModel:
    """What a node knows of the model it has opened."""
    spec = store.spec
    num_layers = sum(layer < spec.num_layers for layer in spec.moe_layers)
    return NodeModel(
        name=store.name,
        root=store.manifest.root,
        layers=spec.moe_layers,
        experts_per_layer=spec.router.num_experts,
        experts_per_token=num_layers * spec.router.top_k,
        expert_bytes=backend.resident_bytes(spec.expert, store.weight_format),
        weight_format=store.weight_format,
        kernel=backend.name,
    )


def info_of(
    claim: Claim, entry: Entry, keeper: Keeper, choice: Choice | None, missing: Holding, library: Library
) -> NodeInfo:
    """What a node that is up tells its user."""
    num_missing, addresses = sum(map(len, missing.values())), for_own_token(entry.p2pd.addresses)
    return NodeInfo(
        peer=claim.peer,
        model_root=claim.model_root.hex(),
        join=entry.p2pd.addresses,
        invite=encode_invite(Invite(claim.model_root, addresses, entry.membership, library.files_digest)),
        is_private=entry.membership is not None,
        addresses=claim.addresses,
        num_experts=keeper.num_experts,
        resident_bytes=keeper.resident_bytes,
        p2pd_pid=entry.p2pd.pid,
        choice=choice,
        num_missing=num_missing,
        missing_bytes=num_missing * library.expert_bytes,
        num_cold=sum(map(len, keeper.cold.values())),
        read_ms=keeper.read_ms,
    )
