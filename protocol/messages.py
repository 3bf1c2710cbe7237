"""What peers say: frozen messages, and the table of their fields from which the codec works.

A message is a header (a msgpack map with fixed integer keys) and, for DISPATCH and PARTIAL, a body of raw tensors; for
CHUNK, bytes of a piece.
Each class lists its fields once, with key, kind and bounds; encoding, decoding, range checks and PROTOCOL.md §6 all
follow that table. Knows no bytes order of frames (`frames.py`), no tensors (`tensors.py`), no meaning of weights.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import ClassVar, TypeGuard

from shoal.protocol import limits
from shoal.protocol.dtypes import DType as DType
from shoal.protocol.dtypes import row_bytes
from shoal.protocol.errors import Malformed
from shoal.protocol.fields import MAX_U32 as MAX_U32
from shoal.protocol.fields import BytesField as BytesField
from shoal.protocol.fields import Field as Field
from shoal.protocol.fields import IntField as IntField
from shoal.protocol.fields import IntsField as IntsField

Value = int | bytes | tuple[int, ...]


class Rounding(IntEnum):
    """Canonical arithmetic of an expert (docs/adr/0004); part of every request and record."""

    FP32 = 0
    """"rounding 0": fp32 end to end."""
    BF16 = 1
    """"rounding 1": bf16 inputs, fp32 accumulation; gate, up, their product and the weighted result rounded to bf16."""


class WeightFormat(IntEnum):
    """How a holder's weights are stored; replicas in another format are another model."""

    FP8_BLOCK = 1
    BF16 = 2
    F32 = 3
    INT8_G128 = 4
    INT4_G32 = 5
    INT4_G128 = 6
    MXFP4 = 7


class Lane(IntEnum):
    """The connections of one session, so that big frames never block small ones."""

    CTL = 0
    """ping, cancel, drain"""
    ACT = 1
    """decode activations"""
    BULK = 2
    """prefill, weights"""


class Message:
    """Base of all messages: checks the bounds of every field at construction, ours as well as a peer's.

    The last field may be optional: 0, its default, is left out, so that there is one way to write a message.
    """

    __slots__ = ()
    TYPE: ClassVar[int]
    FIELDS: ClassVar[tuple[Field, ...]]
    LAST_OPTIONAL: ClassVar[str] = ""
    """The name of the last field, if it is optional."""

    _INTS: ClassVar[tuple[tuple[str, int, int], ...]] = ()
    """Name and bounds of the fields that are integers, and the others; for `__post_init__`."""
    _OTHERS: ClassVar[tuple[Field, ...]] = ()

    def __init_subclass__(cls) -> None:
        cls._INTS = tuple((each.name, each.low, each.high) for each in cls.FIELDS if _is_bounded(each))
        cls._OTHERS = tuple(each for each in cls.FIELDS if not _is_bounded(each))

    def __post_init__(self) -> None:
        for name, low, high in self._INTS:  # without a call for each: every header of every frame comes here
            value = getattr(self, name)
            if type(value) is not int or not low <= value <= high:
                self._check(self.FIELDS)
                return
        self._check(self._OTHERS)

    def _check(self, fields: tuple[Field, ...]) -> None:
        for field in fields:
            given = getattr(self, field.name)
            checked = field.check(given)
            if checked is not given:  # a list, or an IntEnum of ours
                object.__setattr__(self, field.name, checked)

    def header(self) -> dict[int, Value]:
        """The header as a map of field keys, ascending."""
        is_short = self.LAST_OPTIONAL and not getattr(self, self.LAST_OPTIONAL)
        return {field.key: getattr(self, field.name) for field in (self.FIELDS[:-1] if is_short else self.FIELDS)}

    def body_size(self) -> int:
        """Bytes of raw tensors that must follow this header; 0 for most messages."""
        return 0

    @classmethod
    def from_header(cls, header: Mapping[int, object]) -> "Message":
        """Build the message from a decoded header map, whose keys 1, 2, … are the fields in their order.

        Raises:
            Malformed: a key is missing, unknown or out of order, or a value is out of its bounds.
        """
        is_short = bool(cls.LAST_OPTIONAL) and len(header) == len(cls.FIELDS) - 1
        if list(header) != list(range(1, len(cls.FIELDS) + (not is_short))):
            raise Malformed(f"{cls.__name__} with fields {list(header)}")
        if cls.LAST_OPTIONAL and not is_short and not header[len(cls.FIELDS)]:
            raise Malformed(f"{cls.LAST_OPTIONAL} is 0 and should have been left out")
        return cls(*header.values())


def _is_bounded(field: Field) -> TypeGuard[IntField]:
    return isinstance(field, IntField) and not field.is_optional


_VERSION = IntField(1, "version", 1, 255)


@dataclass(frozen=True, slots=True)
class Challenge(Message):
    """Server, first: the nonce that the client must sign."""

    TYPE = 1
    FIELDS = (_VERSION, BytesField(2, "server_nonce", 32))
    version: int
    server_nonce: bytes


@dataclass(frozen=True, slots=True)
class Hello(Message):
    """Client: who I am, with proof (`handshake.py`), and which lane of which session this connection is."""

    TYPE = 2
    FIELDS = (
        _VERSION,
        BytesField(2, "public_key", 32),
        BytesField(3, "client_nonce", 32),
        BytesField(4, "session", 16),
        IntField(5, "lane", 0, 2),
        BytesField(6, "signature", 64),
    )
    version: int
    public_key: bytes
    client_nonce: bytes
    session: bytes
    lane: int
    signature: bytes


@dataclass(frozen=True, slots=True)
class MemberHello(Message):
    """Client of a private swarm, instead of HELLO: who I am, and that the founder has let me in (`membership.py`)."""

    TYPE = 4
    FIELDS = (
        *Hello.FIELDS,
        BytesField(7, "token_key", 32),
        BytesField(8, "certificate", 64),
        BytesField(9, "token_signature", 64),
    )
    version: int
    public_key: bytes
    client_nonce: bytes
    session: bytes
    lane: int
    signature: bytes
    token_key: bytes
    certificate: bytes
    token_signature: bytes


@dataclass(frozen=True, slots=True)
class Welcome(Message):
    """Server: you are in; the credits are what may be in flight at a time, a reply gives them back.

    `dtypes`: bit d set: hidden states may come, and partial sums be asked for, in format d; 0: only what is exact.
    """

    TYPE = 3
    FIELDS = (
        _VERSION,
        BytesField(2, "client_nonce", 32),
        IntField(3, "credit_requests", 1, 4096),
        IntField(4, "credit_bytes", limits.MAX_BODY_BYTES, MAX_U32),
        IntField(5, "dtypes", 1, MAX_U32, is_optional=True),
    )
    LAST_OPTIONAL = "dtypes"
    version: int
    client_nonce: bytes
    credit_requests: int
    credit_bytes: int
    dtypes: int = 0


@dataclass(frozen=True, slots=True)
class Dispatch(Message):
    """Client: run these experts of a layer on these tokens and return one weighted partial sum.

    Body, in this order: hidden states `dtype[T, H]`, topk_weights `f32[P]`, row_idx `u16[P]`, all little-endian;
    P = sum(num_rows). Expert `experts[i]` takes the next `num_rows[i]` (row, weight) pairs. `reply_dtype` is the format
    of the answer; 0: f32.
    """

    TYPE = 16
    FIELDS = (
        BytesField(1, "model_root", 32),
        IntField(2, "layer", 0, limits.MAX_LAYER),
        IntField(3, "rounding", 0, 1),
        IntField(4, "weight_format", 1, 7),
        IntField(5, "dtype", 1, 4),
        IntField(6, "num_tokens", 1, limits.MAX_TOKENS_PER_FRAME),
        IntField(7, "hidden", 1, limits.MAX_HIDDEN),
        IntsField(8, "experts", limits.MAX_EXPERTS_PER_FRAME, 0, 65_535, is_ascending=True),
        IntsField(9, "num_rows", limits.MAX_EXPERTS_PER_FRAME, 1, limits.MAX_TOKENS_PER_FRAME),
        IntField(10, "deadline_ms", 1, limits.MAX_DEADLINE_MS),
        IntField(11, "reply_dtype", 2, 4, is_optional=True),
    )
    LAST_OPTIONAL = "reply_dtype"
    model_root: bytes
    layer: int
    rounding: int
    weight_format: int
    dtype: int
    num_tokens: int
    hidden: int
    experts: tuple[int, ...]
    num_rows: tuple[int, ...]
    deadline_ms: int
    reply_dtype: int = 0

    def __post_init__(self) -> None:
        # named, not super(): a dataclass with slots is a new class, which breaks the zero-argument form
        Message.__post_init__(self)
        if len(self.experts) != len(self.num_rows):
            raise Malformed("experts and num_rows differ in length")
        if self.num_pairs > self.num_tokens * limits.MAX_TOP_K or max(self.num_rows) > self.num_tokens:
            raise Malformed("more (token, expert) pairs than routing can make")
        if self.body_size() > limits.MAX_BODY_BYTES:
            raise Malformed("a body over its limit")

    @property
    def num_pairs(self) -> int:
        """P, the number of (token, expert) pairs."""
        return sum(self.num_rows)

    def body_size(self) -> int:
        return self.num_tokens * row_bytes(self.dtype, self.hidden) + sum(self.num_rows) * (4 + 2)

    def reply_size(self) -> int:
        """Bytes of the answer's body."""
        return self.num_tokens * row_bytes(self.reply_dtype or DType.F32, self.hidden)


@dataclass(frozen=True, slots=True)
class Partial(Message):
    """Server: the weighted partial sum of a DISPATCH. Body: `dtype[T, H]`, little-endian; `dtype` 0: f32.

    `request_hash` binds it to the request (R8). `queue_us` and `compute_us` say where the time went; they are the
    holder's word and serve load balancing only.
    """

    TYPE = 17
    FIELDS = (
        BytesField(1, "request_hash", 32),
        IntField(2, "num_tokens", 1, limits.MAX_TOKENS_PER_FRAME),
        IntField(3, "hidden", 1, limits.MAX_HIDDEN),
        IntField(4, "queue_us", 0, MAX_U32),
        IntField(5, "compute_us", 0, MAX_U32),
        IntField(6, "dtype", 2, 4, is_optional=True),
    )
    LAST_OPTIONAL = "dtype"
    request_hash: bytes
    num_tokens: int
    hidden: int
    queue_us: int
    compute_us: int
    dtype: int = 0

    def __post_init__(self) -> None:
        Message.__post_init__(self)
        if self.body_size() > limits.MAX_BODY_BYTES:
            raise Malformed("a body over its limit")

    def body_size(self) -> int:
        return self.num_tokens * row_bytes(self.dtype or DType.F32, self.hidden)


@dataclass(frozen=True, slots=True)
class Refusal(Message):
    """Server: the request is refused, with a code of `errors.WireCode` and no text."""

    TYPE = 18
    FIELDS = (IntField(1, "code", 1, 13), IntField(2, "retry_after_ms", 0, limits.MAX_DURATION_MS))
    code: int
    retry_after_ms: int


@dataclass(frozen=True, slots=True)
class Cancel(Message):
    """Client, lane ctl: the request with this frame's id is not needed any more. Answered by REFUSAL(CANCELLED)."""

    TYPE = 19
    FIELDS = ()


@dataclass(frozen=True, slots=True)
class Fetch(Message):
    """Client, lane bulk: some bytes of a piece of a model, named by its hash (`experts/pieces`).

    `digest`: of an expert or a tensor of the trunk, as the manifest has it; of a small file or of their list
    (`model_files.py`); `model_root` itself names the manifest, the config's digest the config.
    """

    TYPE = 20
    FIELDS = (
        BytesField(1, "model_root", 32),
        BytesField(2, "digest", 32),
        IntField(3, "begin", 0, limits.MAX_PIECE_BYTES - 1),
        IntField(4, "size", 1, limits.MAX_CHUNK_BYTES),
        IntField(5, "deadline_ms", 1, limits.MAX_DEADLINE_MS),
    )
    model_root: bytes
    digest: bytes
    begin: int
    size: int
    deadline_ms: int


@dataclass(frozen=True, slots=True)
class Chunk(Message):
    """Server, lane bulk: the answer to FETCH. Body: `size` bytes of the piece from `begin`, or fewer than were asked.

    `request_hash` binds it to the request (R8); `piece_bytes` is the length of the whole piece.
    """

    TYPE = 21
    FIELDS = (
        BytesField(1, "request_hash", 32),
        IntField(2, "piece_bytes", 1, limits.MAX_PIECE_BYTES),
        IntField(3, "size", 1, limits.MAX_CHUNK_BYTES),
    )
    request_hash: bytes
    piece_bytes: int
    size: int

    def body_size(self) -> int:
        return self.size


@dataclass(frozen=True, slots=True)
class Ping(Message):
    """Either side: are you there?"""

    TYPE = 32
    FIELDS = (BytesField(1, "nonce", 8),)
    nonce: bytes


@dataclass(frozen=True, slots=True)
class Pong(Message):
    """The answer to PING, with its nonce."""

    TYPE = 33
    FIELDS = (BytesField(1, "nonce", 8),)
    nonce: bytes


@dataclass(frozen=True, slots=True)
class Drain(Message):
    """Server, lane ctl: I leave; send no new request. What is in flight is finished within `grace_ms`."""

    TYPE = 34
    FIELDS = (IntField(1, "grace_ms", 0, limits.MAX_DURATION_MS),)
    grace_ms: int


MESSAGE_TYPES: dict[int, type[Message]] = {
    message.TYPE: message
    for message in (
        Challenge, Hello, MemberHello, Welcome, Dispatch, Partial, Refusal, Cancel, Fetch, Chunk, Ping, Pong, Drain,
    )
}  # fmt: skip
