"""The machines that a user names for `shoal plan`: one JSON file, checked to its last key."""

from dataclasses import replace
from pathlib import Path

import msgspec

from shoal.protocol.errors import InvalidRequest
from shoal.protocol.ids import PeerId
from shoal.simulations.forecast.compute import Calibration, Rates
from shoal.simulations.forecast.geography import MBIT_BYTES
from shoal.simulations.forecast.peers import Link, Peer, TrunkHost

GB = 10**9
UNLIMITED = 1e18
"""Bytes per second of a link that nobody limits."""

MAX_MACHINES = 10_000


class TrunkWords(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Who runs the trunk. What is left out is this machine's."""

    memory_gb: float | None = None
    read_gb_per_s: float | None = None
    multiply_tflop_per_s: float | None = None
    up_mbit_per_s: float | None = None
    down_mbit_per_s: float | None = None


class MachineWords(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Machines that hold experts, `count` of a kind. memory_gb: for experts, of each."""

    memory_gb: float
    rtt_ms: float
    count: int = 1
    name: str = "machine"
    read_gb_per_s: float | None = None
    multiply_tflop_per_s: float | None = None
    up_mbit_per_s: float | None = None
    down_mbit_per_s: float | None = None


class MachinesFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The file."""

    peers: list[MachineWords]
    trunk: TrunkWords = TrunkWords()


def read_machines(path: Path, calibration: Calibration, memory_bytes: int) -> tuple[list[Peer], TrunkHost]:
    """The machines of a file; rates that it leaves out are the calibration's. memory_bytes: of this machine.

    Raises:
        InvalidRequest: not such a file. OSError: it cannot be read.
    """
    try:
        words = msgspec.json.decode(path.read_bytes(), type=MachinesFile)
    except msgspec.DecodeError as error:
        raise InvalidRequest(f"{path} names no machines: {error}") from error
    _check(words)
    usual, trunk = calibration.rates(), words.trunk
    peers = [
        Peer(
            PeerId(f"{each.name}-{kind}-{number:05}"),
            each.rtt_ms / 1000,
            _link(each.up_mbit_per_s, each.down_mbit_per_s),
            _rates(usual, each.read_gb_per_s, each.multiply_tflop_per_s),
            round(each.memory_gb * GB),
        )
        for kind, each in enumerate(words.peers)
        for number in range(each.count)
    ]
    host = TrunkHost(
        _link(trunk.up_mbit_per_s, trunk.down_mbit_per_s),
        _rates(usual, trunk.read_gb_per_s, trunk.multiply_tflop_per_s),
        memory_bytes if trunk.memory_gb is None else round(trunk.memory_gb * GB),
    )
    return peers, host


def _check(words: MachinesFile) -> None:
    if not 1 <= sum(max(0, each.count) for each in words.peers) <= MAX_MACHINES:
        raise InvalidRequest(f"a plan is for 1..{MAX_MACHINES} machines")
    for each in words.peers:
        figures = msgspec.structs.asdict(each)
        for name in ("memory_gb", "count", "read_gb_per_s", "multiply_tflop_per_s", "up_mbit_per_s", "down_mbit_per_s"):
            if figures[name] is not None and figures[name] <= 0:
                raise InvalidRequest(f"{name} of {each.name} is {figures[name]}, expected more than 0")
        if each.rtt_ms < 0:
            raise InvalidRequest(f"rtt_ms of {each.name} is {each.rtt_ms}, expected >= 0")
    for name, figure in msgspec.structs.asdict(words.trunk).items():
        if figure is not None and figure <= 0:
            raise InvalidRequest(f"{name} of the trunk host is {figure}, expected more than 0")


def _link(up: float | None, down: float | None) -> Link:
    return Link(UNLIMITED if up is None else up * MBIT_BYTES, UNLIMITED if down is None else down * MBIT_BYTES)


def _rates(usual: Rates, read: float | None, multiply: float | None) -> Rates:
    return replace(
        usual,
        read_bytes_per_s=usual.read_bytes_per_s if read is None else read * 1e9,
        macs_per_s=usual.macs_per_s if multiply is None else multiply * 1e12 / 2,
    )
