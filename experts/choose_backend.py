"""Which back end a program runs its experts on: the user's word, or the fastest that is there."""

import logging
import os
from enum import StrEnum

import torch

from shoal.experts.backend import ExpertBackend
from shoal.experts.cpu_backend import CpuBackend
from shoal.experts.cuda_backend import CudaBackend
from shoal.experts.reference_backend import ReferenceBackend
from shoal.kernels import cpu
from shoal.protocol.errors import InvalidRequest

logger = logging.getLogger(__name__)


class KernelChoice(StrEnum):
    """What a user can ask for."""

    AUTO = "auto"
    """The C++ kernels where they were built, else the reference."""
    CPU = "cpu"
    CUDA = "cuda"
    """Never chosen by itself: its speed is unmeasured."""
    REFERENCE = "reference"


def choose_backend(choice: KernelChoice, threads: int, device_limit_bytes: int | None = None) -> ExpertBackend:
    """The back end for `choice`. `threads` 0: one per core that this process may use. `device_limit_bytes`: what it may
    take of a CUDA device; None: what is free.

    Raises:
        InvalidRequest: the C++ kernels are asked for and were not built, or more threads than they can have; a CUDA
        device is asked for and is not there.
    """
    if choice is KernelChoice.CUDA:
        return CudaBackend(torch.device("cuda"), limit_bytes=device_limit_bytes)
    if choice is KernelChoice.REFERENCE:
        return ReferenceBackend()
    if cpu.is_available():
        num_threads = threads or _num_usable_cores()
        if num_threads > cpu.MAX_THREADS:
            raise InvalidRequest(f"{num_threads} threads; at most {cpu.MAX_THREADS}")
        return CpuBackend(cpu.CpuKernels(num_threads))
    if choice is KernelChoice.CPU:
        raise InvalidRequest("the C++ kernels were not built at installation (is there a C++20 compiler?)")
    logger.warning(
        "the C++ kernels were not built at installation: experts run on the torch reference, which takes four times"
        " the memory and time of published fp8 weights; a C++20 compiler and a new `pip install` mend it"
    )
    return ReferenceBackend()


def _num_usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
