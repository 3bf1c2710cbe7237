"""`shoal invite` and `shoal join`: the way into a private swarm, without a token in any process list or log."""

import json
import os
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from msgspec import to_builtins

from shoal.cli.boundary import reporting_errors, run_coroutine
from shoal.cli.options import program
from shoal.client.translate import N_, _

if TYPE_CHECKING:
    from shoal.cli.swarms import ListedToken

SwarmOption = Annotated[str | None, typer.Option("--swarm", help="Which swarm. Default: $SHOAL_SWARM, else default.")]

ONLY_HERE = N_("every address in this token is this machine's loopback, so nobody elsewhere can use it; "
               "try: {program} node --host 0.0.0.0, then invite again")  # fmt: skip

REVOKED = N_("""revoked: nodes on this machine refuse it and cut its connections within seconds, and tell the swarm;
members elsewhere follow within a minute, or when one of yours runs again, and use none of its nodes any more.
Not reached: the directory secret in that token, which still reads who holds what. To be rid of a
member for certain, begin a new swarm and invite the others again.""")


def invite(
    label: Annotated[str, typer.Option(help="For whom, as a note to yourself.")] = "",
    is_list: Annotated[bool, typer.Option("--list", help="Tokens that were made here.")] = False,
    revoke: Annotated[str | None, typer.Option(metavar="ID", help="Refuse a token from now on.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="With --list: print JSON.")] = False,
    swarm: SwarmOption = None,
) -> None:
    """Make a token that lets one friend into the private swarm that began here; on stdout, nothing else."""
    with reporting_errors():
        from shoal.cli import swarms

        name = swarms.chosen_swarm(swarm)
        if is_list:
            _list(swarms.minted(name), as_json)
        elif revoke is not None:
            swarms.revoke(name, revoke)
            print(_(REVOKED), file=sys.stderr)
        else:
            from shoal.protocol.invite import encode_invite, is_loopback

            made = swarms.mint(name, label, time.time(), run_coroutine(lambda: _other_members(name)))
            print(encode_invite(made))
            if all(is_loopback(address) for address in made.bootstrap):
                print("shoal: " + _(ONLY_HERE).format(program=program()), file=sys.stderr)
            print(_("a secret: whoever has it is a member. They type:") + f" {program()} join", file=sys.stderr)


def join(
    token: Annotated[str | None, typer.Argument(help="Better not: others see it. - reads stdin.")] = None,
    file: Annotated[Path | None, typer.Option(help="File with the token.")] = None,
    swarm: SwarmOption = None,
) -> None:
    """Keep a token, so that run, chat, serve and node need no --join. Asks for it, or reads it from a pipe."""
    with reporting_errors():
        from shoal.cli import swarms

        name = swarms.chosen_swarm(swarm)
        if token not in (None, "-"):
            words = _("others on this machine can see a token in the command line; leave it out")
            print(f"shoal: {words}", file=sys.stderr)
        if swarms.read_founder(name) is not None:
            raise typer.BadParameter(f"the swarm {name!r} began here; choose another name with --swarm")
        invite = swarms.keep_token(name, _token(token, file))
        is_open = invite.membership is None
        words = _("joined the open swarm {name}, model {root}") if is_open else _(
            "joined the private swarm {name}, model {root}"
        )  # fmt: skip
        print(words.format(name=repr(name), root=invite.model_root.hex()[:16] + "…"), file=sys.stderr)
        print(_("kept in {path}").format(path=swarms.swarm_path(name, "token")) + " (0600)", file=sys.stderr)


def _token(token: str | None, file: Path | None) -> str:
    if file is not None:
        return file.read_text(encoding="utf-8", errors="replace")
    if token not in (None, "-"):
        return token or ""
    if token is None and os.environ.get("SHOAL_JOIN"):
        return os.environ["SHOAL_JOIN"]
    if sys.stdin.isatty():
        return str(typer.prompt(_("Token"), hide_input=True, err=True))
    return sys.stdin.read(4096)


async def _other_members(swarm: str) -> list[str]:
    """An address of every holder that the founder's node knows, if it runs: a token is good while any of them is."""
    from shoal.cli.swarms import stored_token
    from shoal.protocol.control import GetPeers, PeerRole, Peers
    from shoal.protocol.errors import ShoalError
    from shoal.protocol.invite import decode_invite
    from shoal.protocol.net.control_socket import DEFAULT_NAME, ask, runtime_dir

    try:
        said = await ask(runtime_dir(), DEFAULT_NAME, GetPeers())
    except ShoalError:
        return []  # none runs, or it is starting
    own = stored_token(swarm)
    peers = said.peers if isinstance(said, Peers) and own is not None else ()
    ours = {address.rpartition("/p2p/")[2] for address in (decode_invite(own).bootstrap if own is not None else ())}
    if not ours & {peer.peer for peer in peers if peer.role is PeerRole.SELF}:
        return []  # a node of another swarm
    found = [[address for address in peer.addresses if address.endswith(f"/p2p/{peer.peer}")] for peer in peers
             if peer.role is PeerRole.HOLDER]  # fmt: skip
    return [addresses[0] for addresses in found if addresses]


def _list(tokens: "list[ListedToken]", as_json: bool) -> None:
    if as_json:
        print(json.dumps(to_builtins(tokens)))
        return
    for token in tokens:
        made = datetime.fromtimestamp(token.made_at_s, UTC).strftime("%Y-%m-%d %H:%M")
        print(f"{token.id}  {made}  {_('revoked') if token.is_revoked else _('good   ')}  {token.label}")
