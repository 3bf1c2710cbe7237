"""A client can not be somebody else: relay, replay, reflection, and every field that the signature binds."""

from dataclasses import replace

import pytest

from shoal.protocol.errors import AuthenticationFailed, Malformed, UnsupportedVersion
from shoal.protocol.handshake import ClientHandshake, ServerHandshake
from shoal.protocol.identity import Identity, peer_id_of
from shoal.protocol.messages import Challenge, Hello, Lane, Ping, Welcome

SERVER, CLIENT, MALLORY = (Identity.from_seed(bytes([number]) * 32) for number in (1, 2, 3))
SERVER_NONCE, CLIENT_NONCE, SESSION = b"N" * 32, b"n" * 32, b"s" * 16


def client(server: Identity = SERVER, identity: Identity = CLIENT) -> ClientHandshake:
    return ClientHandshake(identity, server.peer, CLIENT_NONCE, SESSION, Lane.ACT)


def server(nonce: bytes = SERVER_NONCE, identity: Identity = SERVER) -> ServerHandshake:
    return ServerHandshake(identity.peer, nonce)


def hello() -> Hello:
    answer = client().answer(server().challenge)
    assert isinstance(answer, Hello)
    return answer


def test_an_honest_client_is_admitted_with_its_session_and_lane():
    admitted = server().admit(hello())
    assert (admitted.peer, admitted.session, admitted.lane) == (CLIENT.peer, SESSION, Lane.ACT)
    assert server().admit(hello(), expected=CLIENT.peer) == admitted


def test_a_hello_for_one_server_is_worth_nothing_at_another():
    # Mallory relays the real server's challenge to a client that believes to talk to Mallory
    relayed = client(server=MALLORY).answer(server().challenge)
    with pytest.raises(AuthenticationFailed):
        server().admit(relayed)


def test_a_hello_can_not_be_replayed():
    with pytest.raises(AuthenticationFailed):
        server(nonce=b"M" * 32).admit(hello())


def test_our_own_nonce_does_not_come_back():
    handshake = ClientHandshake(CLIENT, SERVER.peer, SERVER_NONCE, SESSION, Lane.ACT)
    with pytest.raises(AuthenticationFailed, match="nonce"):
        server().admit(handshake.answer(server().challenge))


def test_a_client_is_whom_the_channel_below_has_proved():
    with pytest.raises(AuthenticationFailed):
        server().admit(hello(), expected=MALLORY.peer)


def test_a_key_without_its_secret_is_worth_nothing():
    stolen = replace(client(identity=MALLORY).answer(server().challenge), public_key=CLIENT.public_key)
    with pytest.raises(AuthenticationFailed):
        server().admit(stolen)


@pytest.mark.parametrize(
    "changes",
    [
        {"lane": int(Lane.CTL)},
        {"session": b"S" * 16},
        {"client_nonce": b"m" * 32},
        {"public_key": MALLORY.public_key},
        {"signature": bytes(64)},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_the_signature_binds_every_field(changes):
    with pytest.raises(AuthenticationFailed):
        server().admit(replace(hello(), **changes))


def test_other_versions_are_named_as_such():
    with pytest.raises(UnsupportedVersion):
        server().admit(replace(hello(), version=2))
    with pytest.raises(UnsupportedVersion):
        client().answer(Challenge(2, SERVER_NONCE))
    with pytest.raises(UnsupportedVersion):
        client().finish(Welcome(2, CLIENT_NONCE, 1, 2**25))


def test_a_welcome_to_another_hello_is_refused():
    with pytest.raises(AuthenticationFailed):
        client().finish(Welcome(1, b"m" * 32, 1, 2**25))
    assert client().finish(Welcome(1, CLIENT_NONCE, 1, 2**25)).credit_requests == 1


def test_messages_come_in_their_order():
    ping = Ping(bytes(8))
    for step in (client().answer, client().finish, server().admit):
        with pytest.raises(Malformed):
            step(ping)


def test_a_key_that_is_no_point_of_the_curve_is_no_peer():
    small_order = bytes(32)
    forged = replace(hello(), public_key=small_order, signature=bytes([1]) + bytes(63))
    with pytest.raises(AuthenticationFailed):
        server().admit(forged)
    assert peer_id_of(small_order)
