"""The swarms of this user: tokens and founders' secrets, in `swarms/` of the configuration directory, files 0600.

`NAME.token` is what we join by; `NAME.founder` the secret of a swarm that began here, with the list of its tokens;
`NAME.revoked` the ids that our nodes refuse; `KEY.revocations` the list that the founder with this key has signed;
`NAME.key` the key of the founder's node, so that its address stays.
Knows no network. No function here prints a token or puts one into an error.
"""

import os
import re
import stat
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import mkstemp

import msgspec

from shoal.cli.settings_file import settings_path
from shoal.protocol.errors import InvalidRequest
from shoal.protocol.invite import PRIVATE_PREFIX, Invite, bootstrap_of, decode_invite
from shoal.protocol.membership import SECRET_BYTES, SERIAL_BYTES, Founder, Membership, token_id
from shoal.protocol.revocation_list import list_name, sign_revocations

SWARM_VARIABLE = "SHOAL_SWARM"
DEFAULT_SWARM = "default"
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,30}")

OWN_SERIAL = bytes(SERIAL_BYTES)
"""Of the token by which the founder's own programs join."""


class MintedToken(msgspec.Struct, frozen=True):
    """A token that was given away; nothing in it helps to make it again without the founder's secret."""

    id: str
    label: str
    made_at_s: float


class ListedToken(msgspec.Struct, frozen=True):
    """A line of `shoal invite --list --json`. `made_at_s`: Unix time."""

    id: str
    label: str
    made_at_s: float
    is_revoked: bool


class FounderFile(msgspec.Struct):
    """`NAME.founder`. `node`: the name of the node that began the swarm; `p2p_port`: so that tokens stay good."""

    secret: bytes
    node: str
    p2p_port: int = 0
    tokens: list[MintedToken] = []


def swarm_path(name: str, suffix: str) -> Path:
    """A file of a swarm.

    Raises:
        InvalidRequest: no name for a file.
    """
    if not _NAME.fullmatch(name):
        raise InvalidRequest(f"{name!r} is no swarm's name; write small letters, digits and -")
    return settings_path().parent / "swarms" / f"{name}.{suffix}"


def chosen_swarm(name: str | None) -> str:
    """The flag, else the variable, else the default."""
    return name or os.environ.get(SWARM_VARIABLE) or DEFAULT_SWARM


def write_private(path: Path, data: bytes) -> None:
    """Put a file in place, whole, readable by its owner alone."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor, temporary = mkstemp(prefix=f".{path.name}.", dir=path.parent)  # mode 0600
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
    os.replace(temporary, path)


def read_private(path: Path) -> bytes | None:
    """What is in the file; None if there is none.

    Raises:
        InvalidRequest: others can read it.
    """
    if not path.exists():
        return None
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        raise InvalidRequest(f"{path} is open to other users (mode {mode:04o}); try: chmod 600 {path}")
    return path.read_bytes()


def stored_token(swarm: str) -> str | None:
    """The token by which we join a swarm of this user's; None: we do not know it."""
    data = read_private(swarm_path(swarm, "token"))
    return None if data is None else data.decode("ascii", "replace").strip()


def keep_token(swarm: str, token: str) -> Invite:
    """Check and keep a token that was given to us.

    Raises:
        InvalidRequest: it is damaged.
    """
    invite = decode_invite(token)
    write_private(swarm_path(swarm, "token"), token.strip().encode("ascii") + b"\n")
    return invite


def words_to_join(join: Sequence[str] | None) -> tuple[str, ...]:
    """What was given, else the token of the chosen swarm, else nothing; warns of a token that others can see."""
    if join:
        if any(PRIVATE_PREFIX in argument for argument in sys.argv):
            print(
                "shoal: the token is in the command line, where others on this machine can see it; try: shoal join",
                file=sys.stderr,
            )
        return tuple(join)
    token = stored_token(chosen_swarm(None))
    return () if token is None else (token,)


def read_founder(swarm: str) -> FounderFile | None:
    """The founder's file; None: this swarm did not begin here."""
    data = read_private(swarm_path(swarm, "founder"))
    try:
        return None if data is None else msgspec.json.decode(data, type=FounderFile)
    except msgspec.DecodeError:
        raise InvalidRequest(f"{swarm_path(swarm, 'founder')} is damaged") from None


def write_founder(swarm: str, founder: FounderFile) -> None:
    """Keep it."""
    write_private(swarm_path(swarm, "founder"), msgspec.json.encode(founder))


def found_swarm(swarm: str, node: str) -> FounderFile:
    """Begin a private swarm, or go on with the one that began here."""
    founder = read_founder(swarm)
    if founder is None:
        founder = FounderFile(os.urandom(SECRET_BYTES), node)
        write_founder(swarm, founder)
    return founder


def own_membership(founder: FounderFile) -> Membership:
    """By which the founder's own programs are members."""
    return Founder(founder.secret).member(OWN_SERIAL)


def mint(swarm: str, label: str, made_at_s: float, others: Sequence[str] = ()) -> Invite:
    """Make a token and note its id. `made_at_s`: Unix time. `others`: multiaddrs of other members, known to be there.

    Raises:
        InvalidRequest: the swarm did not begin here, or no node of it has run yet.
    """
    founder, own = _founder(swarm), stored_token(swarm)
    if own is None:
        raise InvalidRequest("nobody can be reached yet: start `shoal node` first")
    known = decode_invite(own)
    member = Founder(founder.secret).member(os.urandom(SERIAL_BYTES))
    founder.tokens.append(MintedToken(token_id(member.token_key), label, made_at_s))
    write_founder(swarm, founder)
    return Invite(known.model_root, bootstrap_of(known.bootstrap, others), member, known.files)


def minted(swarm: str) -> list[ListedToken]:
    """Every token that was made here, and whether it was revoked."""
    revoked = revoked_ids(swarm)
    tokens = _founder(swarm).tokens
    return [ListedToken(each.id, each.label, each.made_at_s, each.id in revoked) for each in tokens]


def revoked_ids(swarm: str) -> list[str]:
    """Ids that our nodes refuse."""
    return (read_private(swarm_path(swarm, "revoked")) or b"").decode("ascii").split()


def revoke(swarm: str, identifier: str) -> None:
    """Sign the list with which our nodes, and by them all others of the swarm, refuse a token.

    Raises:
        InvalidRequest: no token of ours, or more than a list can name.
    """
    founder = _founder(swarm)
    made = [token.id for token in founder.tokens]
    if identifier not in made:
        raise InvalidRequest(f"no token {identifier!r} was made here; try: shoal invite --list")
    ids = sorted({*revoked_ids(swarm), identifier})
    write_private(swarm_path(swarm, "revoked"), "".join(f"{each}\n" for each in ids).encode("ascii"))
    identity = Founder(founder.secret).identity
    signed = sign_revocations([each for each in ids if each in made], identity)
    write_private(swarm_path(list_name(identity.public_key), "revocations"), signed.encoded)


def _founder(swarm: str) -> FounderFile:
    founder = read_founder(swarm)
    if founder is None:
        raise InvalidRequest(f"the swarm {swarm!r} did not begin on this machine: ask who invited you")
    return founder
