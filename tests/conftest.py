"""Settings of the whole test suite."""

import importlib.util
import os
import sys

import torch
from hypothesis import settings

# time is measured by benchmarks and never asserted on: two busy cores stall a test for a second
settings.register_profile("shoal", deadline=None)
settings.load_profile("shoal")

# Triton decides when it is first imported, by whomever, whether its programs are interpreted
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# the tests' models are so small that a second thread only waits for the first
torch.set_num_threads(1)


def _use_native_at(path: str) -> None:
    """Let the module at `path` be the C++ kernels of this process: `make sanitize` builds one beside the installed."""
    spec = importlib.util.spec_from_file_location("shoal.kernels._native", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules["shoal.kernels._native"] = module


if "SHOAL_NATIVE_PATH" in os.environ:
    _use_native_at(os.environ["SHOAL_NATIVE_PATH"])
