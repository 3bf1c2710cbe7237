"""Settings of the client's tests."""

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Small products are slower on two threads than on one, tenfold when the cores are busy."""
    torch.set_num_threads(1)
