"""How much of a device's memory this process may take: the owner's `--vram`, held by torch's own allocator.

The seam under `cuda_backend.py`: the device's figures and its cap, so that the limit is tested without a device.
What the CUDA context itself takes (some 0.5 GB of kernels and handles) torch does not count, and neither do we.
"""

from typing import Protocol

import psutil
import torch

from shoal.protocol.errors import InvalidRequest

EXPERTS_SHARE = 0.9
"""Of a limit, for experts; the rest is for the rows and hidden values of the calls in flight."""


class DeviceMemory(Protocol):
    """The memory of one device, in bytes."""

    def total_bytes(self) -> int:
        """All there is."""

    def free_bytes(self) -> int:
        """What no program uses now."""

    def used_bytes(self) -> int:
        """What this process's tensors hold."""

    def cap(self, size_bytes: int) -> None:
        """From now on an allocation of this process fails that would bring it above so many bytes."""


class CudaMemory:
    """A CUDA device's memory, by torch. device: of type cuda; without an index it is the current one."""

    def __init__(self, device: torch.device) -> None:
        self._index = torch.cuda.current_device() if device.index is None else device.index

    def total_bytes(self) -> int:
        """See `DeviceMemory`."""
        return int(torch.cuda.mem_get_info(self._index)[1])

    def free_bytes(self) -> int:
        """See `DeviceMemory`."""
        return int(torch.cuda.mem_get_info(self._index)[0])

    def used_bytes(self) -> int:
        """See `DeviceMemory`."""
        return int(torch.cuda.memory_allocated(self._index))

    def cap(self, size_bytes: int) -> None:
        """See `DeviceMemory`. torch takes a fraction of all there is."""
        torch.cuda.set_per_process_memory_fraction(min(1.0, size_bytes / self.total_bytes()), self._index)


class HostMemory:
    """Main memory in the place of a device's: for the CUDA programs under Triton's interpreter."""

    def total_bytes(self) -> int:
        """See `DeviceMemory`."""
        return int(psutil.virtual_memory().total)

    def free_bytes(self) -> int:
        """See `DeviceMemory`."""
        return int(psutil.virtual_memory().available)

    def used_bytes(self) -> int:
        """Not known: nothing counts the tensors of the interpreter."""
        return 0

    def cap(self, size_bytes: int) -> None:
        """Nothing here can hold it."""


class ExpertRoom:
    """What experts may take on a device. limit_bytes: of the whole process; None: what is free."""

    def __init__(self, memory: DeviceMemory, limit_bytes: int | None) -> None:
        self._memory = memory
        self._limit_bytes = limit_bytes
        if limit_bytes is not None:
            memory.cap(limit_bytes)

    def left_bytes(self) -> int:
        """So much is left for experts; below zero: there are too many already."""
        free_bytes = self._memory.free_bytes()
        if self._limit_bytes is None:
            return free_bytes
        return min(free_bytes, int(self._limit_bytes * EXPERTS_SHARE) - self._memory.used_bytes())

    def claim(self, size_bytes: int) -> None:
        """Before an expert is copied to the device.

        Raises:
            InvalidRequest: it does not fit within the limit.
        """
        if self._limit_bytes is not None and size_bytes > (left_bytes := self.left_bytes()):
            raise InvalidRequest(
                f"an expert of {size_bytes / 1e6:,.0f} MB does not fit: {max(0, left_bytes) / 1e6:,.0f} MB are left of"
                f" the {self._limit_bytes / 1e6:,.0f} MB of device memory that --vram allows"
            )
