"""Which model a token is of, and where it is here: the embedded one, one of the store, or fetched from the swarm first.

Between the verbs' words and what opens a model. A verb that was told a model asks nothing of this.
"""

import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from shoal.client.translate import N_, _

if TYPE_CHECKING:
    from shoal.experts.pieces.model import PieceModel
    from shoal.experts.pieces.shelf import Shelf
    from shoal.node.seeding.peers import Peers
    from shoal.node.weights.by_token import TokenWish
    from shoal.protocol.invite import Invite
    from shoal.protocol.net.throttle import Throttle

STAGES = {"files": N_("fetching config and tokenizer"), "trunk": N_("fetching the trunk")}


@dataclass(frozen=True, slots=True)
class Telling:
    """How a user hears of a fetch. bar: (stage, bytes done, bytes in all); say: a sentence."""

    bar: Callable[[str, int, int], None]
    say: Callable[[str], None]

    def progress(self, stage: str, done_bytes: int, total_bytes: int) -> None:
        """For `by_token.py`."""
        self.bar(_(STAGES[stage]), done_bytes, total_bytes)


def on_stderr(words: str) -> None:
    """Where standard output is an answer's."""
    print(f"shoal: {words}", file=sys.stderr, flush=True)


async def model_by_words(
    model: Path | None,
    join: Sequence[str],
    telling: Telling,
    lan_host: str | None = None,
    needs_trunk: bool = True,
    throttle: "Throttle | None" = None,
) -> Path:
    """The directory of the model that was named, or else of the one that the token in `join` is of.

    lan_host: where to listen for peers on the LAN, if none of the token's answers; None: nowhere. throttle: the owner's
    limits; None: there are none.

    Raises:
        ModelNotFound: what was named is not here. Else as `by_token.py`.
    """
    from shoal.cli.model_words import model_directory, store_directory
    from shoal.experts.pieces.shelf import Shelf
    from shoal.node.weights.by_token import TokenWish
    from shoal.protocol.net.mdns import lan_discovery
    from shoal.protocol.net.throttle import Throttle
    from shoal.simulations.demo_model import MODEL_DIRECTORY

    if model is not None:
        return model_directory(model)
    invite = _invite_in(join)
    if invite is None or invite.model_root == _root_of(MODEL_DIRECTORY):
        return MODEL_DIRECTORY
    discover = None if lan_host is None else lan_discovery(lan_host, os.urandom)
    wish = TokenWish(invite, tuple(join), time.time, discover, throttle or Throttle())
    return await _found_or_fetched(wish, Shelf(store_directory()), needs_trunk, telling)


async def client_model(model: Path | None, join: Sequence[str], lan: str, telling: Telling) -> Path:
    """As `model_by_words`, with the trunk. lan: as `SwarmSettings.lan`."""
    from shoal.protocol.invite import memberships

    is_looking = lan == "any" or (lan == "members" and memberships(join))
    return await model_by_words(model, join, telling, "0.0.0.0" if is_looking else None)


def shown_name(model: Path | None, found: Path, embedded: str) -> str:
    """What a model is called to its users. embedded: the name of the embedded one."""
    from shoal.experts.pieces.shelf import NOTE_FILE, read_note
    from shoal.simulations.demo_model import MODEL_DIRECTORY

    if model is not None:
        return model.resolve().name
    if found == MODEL_DIRECTORY:
        return embedded
    return read_note(found).name if (found / NOTE_FILE).is_file() else found.name


async def _found_or_fetched(wish: "TokenWish", shelf: "Shelf", needs_trunk: bool, telling: Telling) -> Path:
    from shoal.node.weights.by_token import fetch_small_files, missing_trunk, peers_by_token

    model = _on_shelf(shelf, wish.invite.model_root)
    if model is not None and (not needs_trunk or not missing_trunk(model)):
        return model.directory
    async with peers_by_token(wish, shelf) as peers:
        if model is None:
            telling.say(_("the model is not on this machine; fetching what describes it from the swarm"))
            await fetch_small_files(wish, peers, shelf, telling.progress)
            model = _on_shelf(shelf, wish.invite.model_root)
        if model is not None and needs_trunk:
            await _fetch_trunk(wish, peers, model, telling)
    return shelf.find(wish.invite.model_root.hex()).directory


async def _fetch_trunk(wish: "TokenWish", peers: "Peers", model: "PieceModel", telling: Telling) -> None:
    from shoal.cli.reports import size
    from shoal.node.weights.by_token import fetch_trunk, missing_trunk

    missing = missing_trunk(model)
    if not missing:
        return
    words = _("fetching {size} of the trunk; peers that give it: {peers}; interrupted, it goes on where it was")
    size_bytes = sum(piece.size_bytes for piece in missing)
    telling.say(words.format(size=size(size_bytes), peers=peers.num_trunk_givers))
    await fetch_trunk(wish, peers, model, telling.progress)


def _on_shelf(shelf: "Shelf", root: bytes) -> "PieceModel | None":
    from shoal.experts.pieces.model import PieceModel

    known = next((each for each in shelf.models() if each.root == root), None)
    return None if known is None else PieceModel.open_folder(known.directory)


def _invite_in(join: Sequence[str]) -> "Invite | None":
    """The first token's, one that names the model's files before others."""
    from shoal.protocol.invite import decode_invite, is_token

    found = [decode_invite(word) for word in join if is_token(word)]
    return next((each for each in found if each.files is not None), found[0] if found else None)


def token_in(join: Sequence[str]) -> "Invite":
    """As `_invite_in`. Raises InvalidRequest: there is none."""
    from shoal.protocol.errors import InvalidRequest

    invite = _invite_in(join)
    if invite is None:
        raise InvalidRequest("--join needs an invite token here: an address alone does not say which model it is")
    return invite


def _root_of(directory: Path) -> bytes:
    from shoal.experts.manifest import MANIFEST_FILE, load_manifest

    return load_manifest(directory / MANIFEST_FILE).root
