"""The kinds of fields that messages and records are made of: each knows its key, its name and its bounds.

Checks values, ours as well as a peer's. Knows no messages and no bytes.
"""

from dataclasses import dataclass

from shoal.protocol.errors import Malformed

MAX_U32 = 2**32 - 1


@dataclass(frozen=True, slots=True)
class IntField:
    """An unsigned integer, `low` <= value <= `high`; or 0, which is not sent, if it `is_optional`."""

    key: int
    name: str
    low: int
    high: int
    is_optional: bool = False

    def check(self, value: object) -> int:
        if type(value) is not int:
            if not isinstance(value, int) or isinstance(value, bool):
                raise Malformed(f"{self.name} is not an integer")
            value = int(value)  # an IntEnum of ours becomes a plain number
        if not self.low <= value <= self.high and not (self.is_optional and value == 0):
            raise Malformed(f"{self.name} is not an integer in {self.low}..{self.high}")
        return value


@dataclass(frozen=True, slots=True)
class BytesField:
    """A byte string of exactly `size` bytes."""

    key: int
    name: str
    size: int

    def check(self, value: object) -> bytes:
        if type(value) is not bytes or len(value) != self.size:
            raise Malformed(f"{self.name} is not {self.size} bytes")
        return value


@dataclass(frozen=True, slots=True)
class IntsField:
    """A list of 1 to `max_items` integers, each `low` <= value <= `high`; strictly ascending if `is_ascending`."""

    key: int
    name: str
    max_items: int
    low: int
    high: int
    is_ascending: bool = False

    def check(self, value: object) -> tuple[int, ...]:
        if not isinstance(value, (list, tuple)) or not 1 <= len(value) <= self.max_items:
            raise Malformed(f"{self.name} is not a list of 1..{self.max_items}")
        previous = -1
        for item in value:
            if type(item) is not int or not self.low <= item <= self.high:
                raise Malformed(f"{self.name} has an item that is not an integer in {self.low}..{self.high}")
            if self.is_ascending and item <= previous:
                raise Malformed(f"{self.name} is not strictly ascending")
            previous = item
        return tuple(value)


Field = IntField | BytesField | IntsField
