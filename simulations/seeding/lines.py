"""How the machines of a simulation are connected: one direction of a line, and lines as people have them at home."""

import asyncio
from dataclasses import dataclass, field

import numpy as np

from shoal.simulations.forecast.geography import COUNTRIES, City, home
from shoal.simulations.forecast.peers import Link

STEP_S = 5.0
"""What has passed is counted in steps of so many seconds."""


@dataclass(slots=True)
class Line:
    """One direction of a machine's connection to the rest: what passes, passes one after another."""

    bytes_per_s: float
    free_at_s: float = 0.0
    passed: dict[int, int] = field(default_factory=dict)
    """Bytes by the step in which the last of them passed."""

    async def passes(self, size_bytes: int, delay_s: float = 0.0) -> None:
        """Wait until so many bytes more have passed. delay_s: what they take besides, and do not keep the line busy."""
        now_s = asyncio.get_running_loop().time()
        self.free_at_s = max(self.free_at_s, now_s) + size_bytes / self.bytes_per_s
        step = int(self.free_at_s // STEP_S)
        self.passed[step] = self.passed.get(step, 0) + size_bytes
        await asyncio.sleep(self.free_at_s - now_s + delay_s)


def homes(num_machines: int, seed: int) -> list[Link]:
    """Lines of homes in countries drawn from those of `geography.COUNTRIES`, each as likely."""
    rng = np.random.default_rng(seed)
    countries = sorted(COUNTRIES)
    return [home(City("", str(rng.choice(countries)), "", 0.0, 0.0), rng).link for _ in range(num_machines)]
