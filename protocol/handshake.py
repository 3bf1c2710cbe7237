"""The three handshake messages as two state machines (PROTOCOL.md §4). Sans-IO; nonces come in as arguments.

    server                          client
      CHALLENGE(server_nonce)  ─►
                               ◄─  HELLO(key, client_nonce, session, lane, signature)
      WELCOME(client_nonce, credits) ─►

The channel below has already proved the server's key to the client (TLS certificate, or libp2p). The client proves its
own by signing context, both peer ids, both nonces, session and lane. In a private swarm MEMBERHELLO stands for HELLO:
the token's key signs the same, and its certificate shows that the founder made it. A server takes one of the two and
never the other, so there is nothing to downgrade to. Binding the server's id stops relaying: a
signature made for a server in the middle is worth nothing at the one behind it. Binding the server's nonce stops
replay.
"""

from dataclasses import dataclass

from shoal.protocol.errors import AuthenticationFailed, Malformed, UnsupportedVersion
from shoal.protocol.identity import Identity, peer_id_of, public_key_of, verify
from shoal.protocol.ids import PeerId
from shoal.protocol.membership import MemberGate, Membership, token_id
from shoal.protocol.messages import Challenge, Hello, Lane, MemberHello, Message, Welcome
from shoal.protocol.version import HANDSHAKE_CONTEXT, PROTOCOL_VERSION


@dataclass(frozen=True, slots=True)
class Admitted:
    """What a server knows after a good HELLO."""

    peer: PeerId
    session: bytes
    lane: Lane
    token_id: str = ""
    """Of the member; empty in an open swarm."""


def signed_bytes(
    server: PeerId, client_key: bytes, challenge: Challenge, hello_fields: tuple[bytes, bytes, int]
) -> bytes:
    """What the client signs: context, server key, client key, server nonce, client nonce, session, lane (u8)."""
    client_nonce, session, lane = hello_fields
    parts = (public_key_of(server), client_key, challenge.server_nonce, client_nonce, session, bytes([lane]))
    return HANDSHAKE_CONTEXT + b"".join(parts)


class ClientHandshake:
    """The client's side towards one expected server, for one lane."""

    def __init__(
        self,
        identity: Identity,
        server: PeerId,
        nonce: bytes,
        session: bytes,
        lane: Lane,
        membership: Membership | None = None,
    ) -> None:
        """`membership`: of a private swarm; None says HELLO."""
        self._membership = membership
        self._identity = identity
        self._server = server
        self._nonce = nonce
        self._session = session
        self._lane = lane

    def answer(self, message: Message) -> Hello | MemberHello:
        """Answer the server's CHALLENGE."""
        if not isinstance(message, Challenge):
            raise Malformed(f"{type(message).__name__} instead of Challenge")
        _check_version(message.version)
        key = self._identity.public_key
        signed = signed_bytes(self._server, key, message, (self._nonce, self._session, self._lane))
        hello = Hello(PROTOCOL_VERSION, key, self._nonce, self._session, self._lane, self._identity.sign(signed))
        return hello if self._membership is None else _member_hello(hello, self._membership, signed)

    def finish(self, message: Message) -> Welcome:
        """Check the WELCOME, which must answer this very HELLO."""
        if not isinstance(message, Welcome):
            raise Malformed(f"{type(message).__name__} instead of Welcome")
        _check_version(message.version)
        if message.client_nonce != self._nonce:
            raise AuthenticationFailed("a welcome to somebody else's hello")
        return message


class ServerHandshake:
    """The server's side of one connection."""

    def __init__(self, server: PeerId, nonce: bytes, gate: MemberGate | None = None) -> None:
        """`gate`: of a private swarm; None takes HELLO from everybody."""
        self._server = server
        self._gate = gate
        self.challenge = Challenge(PROTOCOL_VERSION, nonce)

    def admit(self, message: Message, expected: PeerId | None = None) -> Admitted:
        """Check a HELLO; `expected` is the peer that the channel below has authenticated, where it does (libp2p).

        Raises:
            AuthenticationFailed: wrong signature, a reflected nonce, not the peer of the channel, or no member.
            Malformed: HELLO to a private server, or MEMBERHELLO to an open one.
        """
        if not isinstance(message, Hello | MemberHello) or isinstance(message, Hello) != (self._gate is None):
            raise Malformed(f"{type(message).__name__} is not what opens this door")
        _check_version(message.version)
        peer = peer_id_of(message.public_key)
        if expected is not None and peer != expected:
            raise AuthenticationFailed(f"{expected} says it is {peer}")
        if message.client_nonce == self.challenge.server_nonce:
            raise AuthenticationFailed("our own nonce came back")
        fields = (message.client_nonce, message.session, message.lane)
        signed = signed_bytes(self._server, message.public_key, self.challenge, fields)
        verify(peer, message.signature, signed)
        token = ""
        if self._gate is not None and isinstance(message, MemberHello):
            self._gate.admit(message.token_key, message.certificate, message.token_signature, signed)
            token = token_id(message.token_key)
        return Admitted(peer, message.session, Lane(message.lane), token)


def _member_hello(hello: Hello, membership: Membership, signed: bytes) -> MemberHello:
    return MemberHello(
        hello.version, hello.public_key, hello.client_nonce, hello.session, hello.lane, hello.signature,
        membership.token_key, membership.certificate, membership.prove(signed),
    )  # fmt: skip


def _check_version(version: int) -> None:
    if version != PROTOCOL_VERSION:
        raise UnsupportedVersion(f"the peer speaks version {version}, we speak {PROTOCOL_VERSION}")
