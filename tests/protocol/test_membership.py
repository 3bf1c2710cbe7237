"""Nobody enters a private swarm, reads its directory or writes to it without a token of its founder."""

import asyncio
import os
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.protocol.errors import AuthenticationFailed, ConnectFailed, InvalidRequest, Malformed, RecordRejected
from shoal.protocol.handshake import ClientHandshake, ServerHandshake
from shoal.protocol.invite import Invite, decode_invite, encode_invite
from shoal.protocol.membership import Founder, MemberGate, Membership, token_id
from shoal.protocol.messages import Hello, Lane, MemberHello
from shoal.protocol.net.direct import DirectConnector, listen_direct
from shoal.protocol.net.entry import bootstrap_addresses, membership_of
from shoal.protocol.record_seal import RecordSeal
from shoal.protocol.revocations import Revocations
from tests.protocol.networks import CLIENT, OTHER, SERVER, SOON_S, body_of, dispatch, echo, run

OURS, THEIRS = Founder(b"F" * 32), Founder(b"G" * 32)
MEMBER, STRANGER = OURS.member(b"1" * 16), THEIRS.member(b"1" * 16)
GATE = MemberGate(MEMBER.founder_key)
NONCE, SESSION, ROOT = b"N" * 32, b"s" * 16, b"r" * 32
ADDRESS = f"/ip4/127.0.0.1/tcp/1/p2p/{SERVER.peer}"


def server(gate: MemberGate | None = GATE, nonce: bytes = NONCE) -> ServerHandshake:
    return ServerHandshake(SERVER.peer, nonce, gate)


def hello(membership: Membership | None = MEMBER, lane: Lane = Lane.ACT) -> Hello | MemberHello:
    client = ClientHandshake(CLIENT, SERVER.peer, b"n" * 32, SESSION, lane, membership)
    return client.answer(server().challenge)


def test_a_member_is_admitted_on_every_lane() -> None:
    for lane in Lane:
        assert server().admit(hello(lane=lane)).peer == CLIENT.peer


def test_a_token_of_another_swarm_opens_nothing() -> None:
    with pytest.raises(AuthenticationFailed):
        server().admit(hello(STRANGER))


def test_a_member_can_not_certify_a_token_of_its_own() -> None:
    forged = replace(STRANGER, founder_key=MEMBER.founder_key, directory_secret=MEMBER.directory_secret)
    with pytest.raises(AuthenticationFailed):
        server().admit(hello(forged))
    with pytest.raises(AuthenticationFailed):
        server().admit(hello(replace(forged, certificate=MEMBER.certificate)))


def test_a_proof_can_not_be_replayed_nor_carried_to_another_handshake() -> None:
    overheard = hello()
    assert isinstance(overheard, MemberHello)
    with pytest.raises(AuthenticationFailed):
        server(nonce=b"M" * 32).admit(overheard)
    # a node puts the token's part of a client's hello into a hello of its own
    own = ClientHandshake(OTHER, SERVER.peer, b"n" * 32, SESSION, Lane.ACT, STRANGER).answer(server().challenge)
    stolen = {name: getattr(overheard, name) for name in ("token_key", "certificate", "token_signature")}
    with pytest.raises(AuthenticationFailed):
        server().admit(replace(own, **stolen))


def test_there_is_nothing_to_downgrade_to() -> None:
    with pytest.raises(Malformed):
        server().admit(hello(None))
    with pytest.raises(Malformed):
        server(gate=None).admit(hello())


def test_a_revoked_token_is_refused_from_the_next_handshake_on_and_others_are_not(tmp_path: Path) -> None:
    file = tmp_path / "revoked"
    gate, other = MemberGate(MEMBER.founder_key, Revocations(file)), OURS.member(b"2" * 16)
    server(gate).admit(hello())
    file.write_text(token_id(MEMBER.token_key) + "\n")
    with pytest.raises(AuthenticationFailed, match="revoked"):
        server(gate).admit(hello())
    server(gate).admit(hello(other))


def test_only_members_get_an_answer_over_tls() -> None:
    async def test() -> None:
        listener = await listen_direct(SERVER, "127.0.0.1", 0, echo, os.urandom, gate=GATE)
        try:
            for membership in (None, STRANGER, MEMBER):
                connector = DirectConnector(CLIENT, os.urandom, membership)
                connecting = connector.connect(SERVER.peer, listener.addresses, SOON_S)
                if membership is MEMBER:
                    channel = await connecting
                    assert (await channel.request(dispatch(), body_of(dispatch()))).body
                else:
                    with pytest.raises(ConnectFailed):
                        await connecting
                await connector.aclose()
        finally:
            await listener.aclose()
        await asyncio.sleep(0)

    run(test())


def test_no_repr_shows_a_secret() -> None:
    shown = repr(MEMBER) + repr(OURS) + repr(Invite(ROOT, (ADDRESS,), MEMBER)) + repr(RecordSeal(MEMBER.token_seed))
    for secret in (MEMBER.token_seed, MEMBER.directory_secret, OURS.secret, MEMBER.certificate):
        assert repr(secret)[2:-1] not in shown
        assert secret.hex() not in shown


def test_a_private_token_survives_its_way_and_names_its_swarm() -> None:
    invite = Invite(ROOT, (ADDRESS,), MEMBER)
    token = encode_invite(invite)
    assert token.startswith("shoal2")
    assert decode_invite(f" {token}\n") == invite
    assert bootstrap_addresses([token], ROOT) == [ADDRESS]
    assert membership_of([token], None) == MEMBER
    assert membership_of([ADDRESS], None) is None
    assert membership_of([ADDRESS], MEMBER) == MEMBER
    with pytest.raises(InvalidRequest, match="different swarms"):
        membership_of([token], STRANGER)


@given(st.integers(6, 300), st.sampled_from("Aa0-_"))
def test_no_error_quotes_a_damaged_token(position: int, sign: str) -> None:
    token = encode_invite(Invite(ROOT, (ADDRESS,), MEMBER))
    damaged = token[:position] + sign + token[position:]
    with pytest.raises(InvalidRequest) as caught:
        decode_invite(damaged)
    assert token[20:60] not in str(caught.value)


def test_records_of_a_private_swarm_lie_elsewhere_and_only_members_read_and_write_them() -> None:
    ours, theirs, nobody = RecordSeal(MEMBER.directory_secret), RecordSeal(STRANGER.directory_secret), RecordSeal()
    assert len({seal.name(ROOT) for seal in (ours, theirs, nobody)}) == 3
    assert RecordSeal(OURS.member(b"2" * 16).directory_secret) == ours
    sealed = ours.seal(b"record", SERVER.peer)
    assert ours.open(sealed, SERVER.peer) == b"record"
    assert b"record" not in sealed
    for seal, data, owner in (
        (theirs, sealed, SERVER.peer), (ours, sealed, CLIENT.peer), (ours, b"record", SERVER.peer),
        (ours, sealed[:-1], SERVER.peer), (ours, b"", SERVER.peer), (ours, theirs.seal(b"x", SERVER.peer), SERVER.peer),
    ):  # fmt: skip
        with pytest.raises(RecordRejected):
            seal.open(data, owner)
