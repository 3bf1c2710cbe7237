"""What a user would do: `shoal models pull`, in its own process, against the local hub; and what went over the wire.

Counted is what the hub sent: pieces, index, headers, manifest and all. Knows the command and the hub; nothing inside.
"""

import asyncio
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from shoal.node.holdings.assignment import Holding
from shoal.simulations.local_hub import REPOSITORY, LocalHub

NAME = "rehearsal"

PATIENCE_S = 1800.0
"""For one command; 8 GB through a busy machine take minutes."""


@dataclass(frozen=True, slots=True)
class Pulled:
    """One `shoal models pull`."""

    num_experts: int
    piece_bytes: int
    """Of the experts' tensors."""
    wire_bytes: int
    """That the hub sent for it, whatever for."""
    num_requests: int
    taken_s: float
    """Of the whole process."""

    @property
    def ratio(self) -> float:
        return self.wire_bytes / self.piece_bytes


@dataclass(frozen=True, slots=True)
class Twice:
    """So many experts into a new store, and as many others after them."""

    first: Pulled
    second: Pulled


@dataclass(frozen=True, slots=True)
class Refused:
    """A pull that must fail."""

    status: int
    words: str


class Puller:
    """Runs `shoal models pull` with directories of its own."""

    def __init__(self, hub: LocalHub, scratch: Path, environment: Mapping[str, str]) -> None:
        self._hub = hub
        self._scratch = scratch
        own = {name: value for name, value in environment.items() if not name.lower().endswith("_proxy")}
        own |= {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(scratch / "hf"), "XDG_CACHE_HOME": str(scratch / "cache")}
        own |= {"HF_HUB_OFFLINE": "0", "LANGUAGE": "en", "XDG_CONFIG_HOME": str(scratch / "config")}
        self._environment = own

    def store(self, name: str) -> Path:
        """Where a pull of this name keeps its pieces."""
        return self._scratch / name

    async def plan(self, experts: str) -> tuple[int, float]:
        """`--dry-run`: bytes that are missing, and what the process took."""
        begun_s = time.perf_counter()
        shown = await self._shown("plan", experts, "--dry-run")
        return int(shown["missing_bytes"]), time.perf_counter() - begun_s

    async def pull(self, store: str, experts: str) -> Pulled:
        """Fetch into a store of this name."""
        sent, requests, begun_s = self._hub.body_bytes, self._hub.num_requests, time.perf_counter()
        shown = await self._shown(store, experts)
        return Pulled(
            num_experts=int(shown["num_fetched"]),
            piece_bytes=int(shown["missing_bytes"]),
            wire_bytes=self._hub.body_bytes - sent,
            num_requests=self._hub.num_requests - requests,
            taken_s=time.perf_counter() - begun_s,
        )

    async def refused(self, store: str, experts: str) -> Refused:
        """A pull that is expected to end with an error."""
        status, _, words = await self._run(store, experts)
        return Refused(status, words.strip().splitlines()[-1] if words.strip() else "")

    async def _shown(self, store: str, experts: str, *more: str) -> dict[str, int]:
        status, shown, words = await self._run(store, experts, *more)
        if status:
            raise RuntimeError(f"shoal models pull ended with {status}: {words}")
        value: dict[str, int] = json.loads(shown)
        return value

    async def _run(self, store: str, experts: str, *more: str) -> tuple[int, str, str]:
        words = [sys.executable, "-m", "shoal.cli", "models", "pull", NAME, "--from", f"hf:{REPOSITORY}"]
        words += ["--experts", experts, "--no-trunk", "--store", str(self.store(store)), "--json", *more]
        process = await asyncio.create_subprocess_exec(
            *words, env=self._environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
        try:
            async with asyncio.timeout(PATIENCE_S):
                shown, said = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        return process.returncode or 0, shown.decode(), said.decode()


def expert_words(holding: Holding) -> str:
    """A holding in the words of `--experts`: `3:0-31,4:5`."""
    return ",".join(f"{layer}:{run}" for layer, experts in holding.items() for run in _runs(sorted(experts)))


def _runs(numbers: Sequence[int]) -> list[str]:
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return [str(first) if first == last else f"{first}-{last}" for first, last in runs]


def flip_a_bit(path: Path, position: int) -> None:
    """Damage a file of the checkpoint, as a bad disk at the mirror would."""
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        (value,) = os.pread(descriptor, 1, position)
        os.pwrite(descriptor, bytes([value ^ 1]), position)
    finally:
        os.close(descriptor)
