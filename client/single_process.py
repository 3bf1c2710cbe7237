"""The same model in one process: trunk and experts side by side. The reference that a swarm's answers are held against,
and what loads the trunk for both.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from shoal.client.engine.engine_settings import EngineSettings
from shoal.client.engine.generate import Engine
from shoal.client.text.tokenizer import Tokenizer
from shoal.client.trunk.checkpoint import load_mtp, load_trunk
from shoal.client.trunk.linear_maker import TrunkFormat, linear_maker
from shoal.client.trunk.local_experts import LocalExperts
from shoal.client.trunk.model import Trunk
from shoal.client.trunk.mtp import Mtp
from shoal.experts.choose_backend import KernelChoice, choose_backend
from shoal.experts.locations import default_cache_dir
from shoal.experts.store import ModelStore
from shoal.experts.worker import Worker
from shoal.protocol.messages import Rounding

TORCH_DTYPES = {Rounding.FP32: torch.float32, Rounding.BF16: torch.bfloat16}


@dataclass(frozen=True, slots=True)
class OpenTrunk:
    """A trunk ready to run, and the model's tokenizer if it has one."""

    trunk: Trunk
    tokenizer: Tokenizer | None
    mtp: Mtp | None = None
    """If it was asked for, and the checkpoint has one."""


def open_trunk(
    store: ModelStore,
    directory: Path,
    rounding: Rounding,
    worker: Worker,
    trunk_format: TrunkFormat = TrunkFormat.DENSE,
    wants_mtp: bool = False,
) -> OpenTrunk:
    """Load trunk and tokenizer of a model, and its MTP layer for drafts. Blocking: run it on a thread.

    Raises:
        InvalidRequest: a packed format, and no C++ kernels. Else as `load_trunk` and `Tokenizer.load`.
    """
    dtype = TORCH_DTYPES[rounding]
    maker = linear_maker(trunk_format, dtype, torch.get_num_threads())
    trunk = load_trunk(store, worker, dtype, maker=maker)
    has_tokenizer = (directory / "tokenizer.json").is_file()
    mtp = load_mtp(store, trunk, maker) if wants_mtp else None
    return OpenTrunk(trunk, Tokenizer.load(directory) if has_tokenizer else None, mtp)


@contextmanager
def single_process_engine(
    directory: Path,
    rounding: Rounding,
    worker: Worker,
    cache_dir: Path | None = None,
    trunk_format: TrunkFormat = TrunkFormat.DENSE,
) -> Iterator[Engine]:
    """An engine that needs no swarm: every expert in this process, read when it is first chosen. Blocking."""
    with ModelStore.open(directory, cache_dir or default_cache_dir()) as store:
        opened = open_trunk(store, directory, rounding, worker, trunk_format)
        backend = choose_backend(KernelChoice.AUTO, torch.get_num_threads())
        experts = LocalExperts(store, backend, rounding, worker)
        settings = EngineSettings(prefill_ahead=1)  # one worker does everything: there is no waiting to hide
        yield Engine(opened.trunk, experts, opened.tokenizer, settings=settings)
