"""Frames: the fixed prefix, the canonical msgpack header, the raw body (PROTOCOL.md §5). Sans-IO.

    magic "SH" | version u8 | type u8 | header_len u16 | reserved u16 = 0 | body_len u32 | request_id u64

Big-endian, 20 bytes. Every length is checked against its limit, and the body's length against the size that the
header implies, before the bytes they announce are waited for. Knows no sockets: bytes in, `Frame`s out.
"""

import struct
from collections.abc import Container, Iterator
from dataclasses import dataclass

import msgpack
import msgspec

from shoal.protocol import limits
from shoal.protocol.errors import Malformed, TooLarge, UnsupportedVersion
from shoal.protocol.messages import MESSAGE_TYPES, Message
from shoal.protocol.version import PROTOCOL_VERSION

MAGIC = b"SH"
PREFIX = struct.Struct(">2sBBHHIQ")
PREFIX_BYTES = PREFIX.size

Buffer = bytes | bytearray | memoryview
_ENCODER = msgspec.msgpack.Encoder()
"""Writes what msgpack's own packer does (tests/protocol/test_frames.py) in a quarter of its time; it has no state."""

ALL_MESSAGES = frozenset(MESSAGE_TYPES.values())


@dataclass(frozen=True, slots=True)
class Frame:
    """One message with its request id (0: belongs to no request) and its raw body, which nobody else writes to."""

    request_id: int
    message: Message
    body: Buffer = b""
    header_bytes: bytes = b""
    """The header as it stood on the wire; what a request's hash covers."""


@dataclass(frozen=True, slots=True)
class Prefix:
    """A checked frame prefix: what follows is `header_len`, then `body_len` bytes."""

    message_type: type[Message]
    header_len: int
    body_len: int
    request_id: int


def encode_header(message: Message) -> bytes:
    """The canonical msgpack header of a message; at most 4 KiB."""
    packed = _ENCODER.encode(message.header())
    if len(packed) > limits.MAX_HEADER_BYTES:
        raise TooLarge(f"a header of {len(packed)} bytes; the limit is {limits.MAX_HEADER_BYTES}")
    return packed


def encode_frame(
    request_id: int, message: Message, header: bytes | None = None, body_bytes: int | None = None
) -> bytes:
    """Prefix and header of a frame, to be followed on the wire by the body of `message.body_size()` bytes.

    `header` and `body_bytes` save computing twice what the caller knows: `encode_header(message)`, the body's size.
    """
    header = encode_header(message) if header is None else header
    body_bytes = message.body_size() if body_bytes is None else body_bytes
    return PREFIX.pack(MAGIC, PROTOCOL_VERSION, message.TYPE, len(header), 0, body_bytes, request_id) + header


def decode_prefix(data: Buffer, max_bytes: int = limits.MAX_FRAME_BYTES) -> Prefix:
    """Check the first 20 bytes of a frame.

    Raises:
        Malformed, UnsupportedVersion, TooLarge: before anything that the prefix announces is read.
    """
    magic, version, type_number, header_len, reserved, body_len, request_id = PREFIX.unpack(data)
    if magic != MAGIC or reserved != 0:
        raise Malformed("not a shoal frame")
    if version != PROTOCOL_VERSION:
        raise UnsupportedVersion(f"a frame of version {version}; this is version {PROTOCOL_VERSION}")
    if type_number not in MESSAGE_TYPES:
        raise Malformed(f"unknown message type {type_number}")
    if header_len > limits.MAX_HEADER_BYTES or header_len + body_len > max_bytes:
        raise TooLarge(f"a frame of {header_len} + {body_len} bytes")
    return Prefix(MESSAGE_TYPES[type_number], header_len, body_len, request_id)


def decode_header(prefix: Prefix, data: bytes) -> Message:
    """Decode and check a header; afterwards the body's length is known to be right.

    Raises:
        Malformed: not msgpack, not canonical, a field missing, unknown or out of range, or a wrong body length.
    """
    header = _unpack(data)
    message = prefix.message_type.from_header(header)
    # re-encoding must give the same bytes: kills duplicate keys, long integers, another key order (R4)
    if _ENCODER.encode(header) != data:
        raise Malformed(f"the header of {prefix.message_type.__name__} is not canonical")
    if message.body_size() != prefix.body_len:
        raise Malformed(f"a body of {prefix.body_len} bytes where the header implies {message.body_size()}")
    return message


def _unpack(data: bytes) -> dict[int, object]:
    try:
        header = msgpack.unpackb(
            data,
            strict_map_key=False,
            raw=False,
            max_str_len=0,
            max_bin_len=64,
            max_array_len=limits.MAX_EXPERTS_PER_FRAME,
            max_map_len=16,
            max_ext_len=0,
        )
    except Exception as error:  # msgpack raises ValueError, its own tree, and RecursionError-like StackError
        raise Malformed("a header that is not msgpack") from error
    if type(header) is not dict or any(type(key) is not int for key in header):
        raise Malformed("a header that is not a map with integer keys")
    return header


class FrameDecoder:
    """Bytes in, frames out: the receiving half of a lane.

    `expected` are the only message types that are parsed at all (R3: nothing but the handshake before it is done);
    `max_bytes` bounds header and body. Both may be replaced between frames.

    Limits: holds at most the bytes of one frame, and only bytes that have arrived: a length that a peer merely
    announces allocates nothing.
    """

    def __init__(
        self, expected: Container[type[Message]] = ALL_MESSAGES, max_bytes: int = limits.MAX_FRAME_BYTES
    ) -> None:
        self.expected = expected
        self.max_bytes = max_bytes
        self._chunk = memoryview(b"")
        self._partial = bytearray()
        self._prefix: Prefix | None = None
        self._message: Message | None = None
        self._header = b""

    @property
    def is_between_frames(self) -> bool:
        """True if no byte of an unfinished frame is held."""
        return self._prefix is None and not self._partial and not self._chunk

    @property
    def num_held(self) -> int:
        """Bytes of an unfinished frame that are held."""
        header = len(self._header) if self._message is not None else 0
        return (PREFIX_BYTES if self._prefix is not None else 0) + header + len(self._partial) + len(self._chunk)

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Take bytes from the wire and yield every frame they complete; what is not asked for stays for the next call.

        A body that lies in `data` whole is a view of it and is not copied; `data` must therefore be immutable.

        Raises:
            RemoteError: the stream can not be followed any further; close it.
        """
        self._chunk = memoryview(bytes(self._chunk) + data) if self._chunk else memoryview(data)
        while (frame := self._next_frame()) is not None:
            yield frame

    def _take(self, size: int) -> Buffer | None:
        """The next `size` bytes, or None after putting aside what there is of them."""
        if not self._partial and len(self._chunk) >= size:
            taken, self._chunk = self._chunk[:size], self._chunk[size:]
            return taken
        missing = size - len(self._partial)
        self._partial += self._chunk[:missing]
        self._chunk = self._chunk[missing:]
        if len(self._partial) < size:
            return None
        whole, self._partial = self._partial, bytearray()
        return whole

    def _next_frame(self) -> Frame | None:
        if self._prefix is None:
            if (data := self._take(PREFIX_BYTES)) is None:
                return None
            prefix = decode_prefix(data, self.max_bytes)
            if prefix.message_type not in self.expected:
                raise Malformed(f"{prefix.message_type.__name__} where it has no place")
            self._prefix = prefix
        if self._message is None:
            if (data := self._take(self._prefix.header_len)) is None:
                return None
            self._header = bytes(data)
            self._message = decode_header(self._prefix, self._header)
        if (body := self._take(self._prefix.body_len)) is None:
            return None
        frame = Frame(self._prefix.request_id, self._message, body, self._header)
        self._prefix = self._message = None
        return frame
