"""Which swarm a node of ours is in when nobody says: the one it has joined, or a private one that it begins.

Between the settings and the node. Knows no network.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from shoal.cli import swarms
from shoal.node.settings import NodeSettings

if TYPE_CHECKING:
    from shoal.node.node_info import NodeInfo


@dataclass(frozen=True, slots=True)
class Place:
    """A node's settings with its swarm, and what to do once it is up."""

    settings: NodeSettings
    remember: Callable[["NodeInfo"], None]


def settled(settings: NodeSettings, is_open: bool) -> Place:
    """Add the swarm to a node's settings. `is_open`: whoever has an address may enter; nothing is kept.

    Raises:
        InvalidRequest: a file of the swarm is damaged or open to others.
    """
    swarm = swarms.chosen_swarm(None)
    settings = replace(settings, revoked=settings.revoked or swarms.swarm_path(swarm, "revoked"))
    if settings.join or is_open:
        return Place(replace(settings, join=swarms.words_to_join(settings.join) if settings.join else ()), _forget)
    token, founder = swarms.stored_token(swarm), swarms.read_founder(swarm)
    if token is not None and (founder is None or founder.node != settings.name):
        return Place(replace(settings, join=(token,)), _forget)
    founder = swarms.found_swarm(swarm, settings.name)
    key = settings.identity or swarms.swarm_path(swarm, "key")
    founded = replace(
        settings, membership=swarms.own_membership(founder), identity=key,
        p2p_port=settings.p2p_port or founder.p2p_port,
    )  # fmt: skip
    return Place(founded, lambda info: _keep(swarm, info))


def _keep(swarm: str, info: "NodeInfo") -> None:
    """Note how this machine's programs get in, and the port, so that tokens are good after the next start too."""
    founder = swarms.read_founder(swarm)
    ports = [int(found[1]) for address in info.join if (found := re.search(r"/tcp/(\d+)", address))]
    if founder is not None and ports:
        founder.p2p_port = ports[0]
        swarms.write_founder(swarm, founder)
    swarms.keep_token(swarm, info.invite)


def _forget(_: "NodeInfo") -> None:
    """A swarm that others began, or an open one, leaves nothing here."""
