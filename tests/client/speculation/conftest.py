"""The model that drafts are made for, in every way its trunk is held."""

from collections.abc import Iterator

import pytest
import torch

from shoal.client.trunk.checkpoint import load_trunk
from shoal.client.trunk.linear_maker import TrunkFormat, linear_maker
from shoal.client.trunk.local_experts import LocalExperts
from shoal.experts.choose_backend import KernelChoice, choose_backend
from shoal.experts.store import ModelStore
from shoal.experts.worker import InlineWorker
from shoal.kernels.cpu import is_available
from shoal.protocol.messages import Rounding
from tests.checkpoints import write_checkpoint
from tests.client.speculation.drafted_model import SHAPE, Model


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """How many threads torch uses decides how it sums."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


EXACT = pytest.mark.skipif(not is_available(), reason="needs the C++ kernels: a C++20 compiler at installation")


@pytest.fixture(
    scope="module",
    params=[
        pytest.param((TrunkFormat.AS_PUBLISHED, torch.float32), id="packed_fp32", marks=EXACT),
        pytest.param((TrunkFormat.AS_PUBLISHED, torch.bfloat16), id="packed_bf16", marks=EXACT),
        pytest.param((TrunkFormat.DENSE, torch.float32), id="dense_fp32"),
    ],
)
def model(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Model:
    trunk_format, dtype = request.param
    directory = tmp_path_factory.mktemp("speculation") / "model"
    write_checkpoint(directory, SHAPE, seed=3)
    store, worker = ModelStore.open(directory, directory.parent / "cache"), InlineWorker()
    rounding = Rounding.FP32 if dtype is torch.float32 else Rounding.BF16
    experts = LocalExperts(store, choose_backend(KernelChoice.AUTO, 1), rounding, worker)
    trunk = load_trunk(store, worker, dtype, maker=linear_maker(trunk_format, dtype, 1))
    return Model(store, trunk, experts)
