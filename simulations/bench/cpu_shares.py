"""How busy processors are while something is measured: by this process, by nodes, by everybody else.

Of the kernel's own accounts (proc(5), as psutil reads it). "Everybody else" is the emulated network's relay, p2pd, the
kernel's share of the traffic and whatever the machine does besides: on a quiet machine next to nothing, and where it
is much the figures beside it are contended.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import psutil


@dataclass(frozen=True, slots=True)
class CpuShares:
    """Cores that were busy on average; together at most as many as the machine has."""

    client: float
    nodes: float
    others: float


class CpuMeter:
    """Takes shares from its making, or the last reading, on."""

    def __init__(self, node_pids: Sequence[int]) -> None:
        self._nodes = [psutil.Process(pid) for pid in node_pids]
        self._last = self._now()

    def shares(self) -> CpuShares:
        """Since the last time.

        Raises:
            psutil.NoSuchProcess: a node has ended.
        """
        before, self._last = self._last, self._now()
        clock_s, client_s, nodes_s, all_s = (now - then for now, then in zip(self._last, before, strict=True))
        client, nodes, everybody = (seconds / max(clock_s, 1e-9) for seconds in (client_s, nodes_s, all_s))
        return CpuShares(client, nodes, max(0.0, everybody - client - nodes))

    def _now(self) -> tuple[float, float, float, float]:
        nodes_s = sum(times.user + times.system for times in (node.cpu_times() for node in self._nodes))
        machine = psutil.cpu_times()
        waiting = machine.idle + getattr(machine, "iowait", 0.0) + getattr(machine, "steal", 0.0)
        doubled = getattr(machine, "guest", 0.0) + getattr(machine, "guest_nice", 0.0)  # in user and nice already
        return time.perf_counter(), time.process_time(), nodes_s, sum(machine) - waiting - doubled
