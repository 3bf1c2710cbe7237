"""What is kept of swarms here: private files, tokens that can be named and revoked, no word that shows one."""

import io
import json
import stat
import sys
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator
from typer.testing import CliRunner

from shoal.cli import swarms
from shoal.cli.main import app
from shoal.node.settings import NodeSettings
from shoal.protocol.errors import InvalidRequest
from shoal.protocol.identity import Identity
from shoal.protocol.invite import Invite, bootstrap_of, decode_invite, encode_invite
from shoal.protocol.membership import Founder
from shoal.protocol.revocation_list import list_name, read_revocations
from tools.schemas import schema_of

ADDRESS = f"/ip4/127.0.0.1/tcp/4001/p2p/{Identity.from_seed(b's' * 32).peer}"
ROOT = b"r" * 32
TOKEN = encode_invite(Invite(ROOT, (ADDRESS,), Founder(b"F" * 32).member(b"1" * 16)))


@pytest.fixture(autouse=True)
def own_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    for name in (swarms.SWARM_VARIABLE, "SHOAL_JOIN"):
        monkeypatch.delenv(name, raising=False)


def founded() -> swarms.FounderFile:
    founder = swarms.found_swarm("default", "node")
    swarms.keep_token("default", encode_invite(Invite(ROOT, (ADDRESS,), swarms.own_membership(founder))))
    return founder


def test_join_reads_the_token_from_stdin_keeps_it_0600_and_never_shows_it() -> None:
    done = CliRunner().invoke(app, ["join"], input=TOKEN + "\n")
    assert done.exit_code == 0, done.output
    assert TOKEN[8:40] not in done.output
    path = swarms.swarm_path("default", "token")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert swarms.words_to_join(None) == (TOKEN,)


def test_a_token_in_the_command_line_works_and_warns(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["shoal", "run", f"--join={TOKEN}"])
    assert swarms.words_to_join([TOKEN]) == (TOKEN,)
    said = capsys.readouterr().err
    assert "others on this machine can see it" in said
    assert said.count("\n") == 1
    assert TOKEN not in said


def test_a_damaged_token_is_refused_and_not_quoted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    done = CliRunner().invoke(app, ["join"], input=TOKEN[:-3] + "\n")
    assert done.exit_code == 2
    assert TOKEN[8:40] not in done.output
    assert swarms.words_to_join(None) == ()


def test_every_invite_is_a_token_of_its_own_of_the_same_swarm() -> None:
    founded()
    tokens = [swarms.mint("default", label, 1.0) for label in ("ana", "ben")]
    members = [invite.membership for invite in tokens]
    assert members[0] is not None
    assert members[1] is not None
    assert members[0].founder_key == members[1].founder_key
    assert members[0].token_key != members[1].token_key
    assert [token.label for token in swarms.minted("default")] == ["ana", "ben"]
    assert swarms.found_swarm("default", "node").secret == founded().secret


def test_a_token_is_revoked_by_its_id_and_others_are_not() -> None:
    founded()
    for label in ("ana", "ben"):
        swarms.mint("default", label, 1.0)
    first = swarms.minted("default")[0].id
    done = CliRunner().invoke(app, ["invite", "--revoke", first])
    assert done.exit_code == 0
    assert "directory secret" in done.output  # what revoking does not reach
    name = list_name(swarms.own_membership(founded()).founder_key)
    signed = swarms.read_private(swarms.swarm_path(name, "revocations"))
    assert signed is not None
    assert read_revocations(signed, swarms.own_membership(founded()).founder_key).token_ids == {first}
    assert [token.is_revoked for token in swarms.minted("default")] == [True, False]
    with pytest.raises(InvalidRequest):
        swarms.revoke("default", "0" * 16)


def test_a_file_that_others_can_read_is_refused() -> None:
    founded()
    swarms.swarm_path("default", "token").chmod(0o644)
    with pytest.raises(InvalidRequest, match="chmod 600"):
        swarms.words_to_join(None)


@pytest.mark.parametrize("name", ["", "../x", "A", "-x", "x" * 40])
def test_a_swarms_name_is_no_path(name: str) -> None:
    with pytest.raises(InvalidRequest):
        swarms.swarm_path(name, "token")


def test_a_node_begins_a_private_swarm_unless_it_is_told_otherwise() -> None:
    from shoal.cli.own_swarm import settled

    settings = NodeSettings(Path("/m"))
    place = settled(settings, is_open=False).settings
    assert place.membership is not None
    assert place.identity == swarms.swarm_path("default", "key")
    assert settled(settings, is_open=False).settings.membership == place.membership
    assert settled(settings, is_open=True).settings.membership is None
    founded()
    second = settled(NodeSettings(Path("/m"), name="second"), is_open=False).settings
    assert (second.membership, len(second.join)) == (None, 1)
    assert second.revoked == swarms.swarm_path("default", "revoked")


def test_a_node_goes_where_its_owner_has_joined() -> None:
    from shoal.cli.own_swarm import settled

    swarms.keep_token("default", TOKEN)
    place = settled(NodeSettings(Path("/m")), is_open=False).settings
    assert (place.join, place.membership) == ((TOKEN,), None)


def test_an_invite_that_leads_only_to_this_machine_is_warned_of_and_others_are_not() -> None:
    founder = founded()
    done = CliRunner().invoke(app, ["invite"])
    assert done.exit_code == 0
    assert "loopback" in done.stderr
    assert decode_invite(done.stdout).bootstrap == (ADDRESS,)
    outside = ADDRESS.replace("127.0.0.1", "192.168.1.7")
    own = Invite(ROOT, (outside, ADDRESS), swarms.own_membership(founder))
    swarms.keep_token("default", encode_invite(own))
    done = CliRunner().invoke(app, ["invite"])
    assert "loopback" not in done.stderr
    assert decode_invite(done.stdout).bootstrap == (outside,)


def test_an_invite_names_other_members_and_no_more_than_a_token_holds() -> None:
    peers = [Identity.from_seed(bytes([number]) * 32).peer for number in range(12)]
    others = [f"/ip4/192.168.1.{number}/tcp/1/p2p/{peer}" for number, peer in enumerate(peers)]
    own = [f"/ip4/10.0.0.{number}/tcp/1/p2p/{peers[0]}" for number in range(6)]
    assert bootstrap_of([ADDRESS, *own], others) == (*own[:4], *others[:4])
    assert bootstrap_of([ADDRESS, *own], [ADDRESS, others[1], others[1]]) == (*own[:4], others[1], *own[4:])
    assert bootstrap_of([ADDRESS]) == (ADDRESS,)
    inside = ADDRESS.replace("/tcp/", "/tcp/1")
    assert bootstrap_of([ADDRESS], [inside]) == (ADDRESS, inside), (
        "a swarm of one machine outlives the node that began it"
    )
    assert bootstrap_of([ADDRESS], [inside, others[1]]) == (others[1],)
    founded()
    assert len(encode_invite(swarms.mint("default", "ana", 1.0, others))) < 2048
    assert swarms.mint("default", "ben", 1.0, others).bootstrap == tuple(others[:8])


def test_an_invite_vouches_for_the_files_that_the_founders_own_token_does() -> None:
    founder = founded()
    for files in (None, b"f" * 32):
        own = Invite(ROOT, (ADDRESS,), swarms.own_membership(founder), files)
        swarms.keep_token("default", encode_invite(own))
        assert swarms.mint("default", "ana", 1.0).files == files


def test_the_list_of_invites_is_what_its_schema_says() -> None:
    founded()
    swarms.mint("default", "ana", 1.0)
    done = CliRunner().invoke(app, ["invite", "--list", "--json"])
    listed = json.loads(done.stdout)
    Draft202012Validator(json.loads(schema_of("invite-list"))).validate(listed)
    assert [each["label"] for each in listed] == ["ana"]
