"""Settings of the whole test suite."""

import torch
from hypothesis import settings

# time is measured by benchmarks and never asserted on: two busy cores stall a test for a second
settings.register_profile("shoal", deadline=None)
settings.load_profile("shoal")

# the tests' models are so small that a second thread only waits for the first
torch.set_num_threads(1)
