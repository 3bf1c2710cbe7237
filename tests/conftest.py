"""Settings of the whole test suite."""

from hypothesis import settings

# time is measured by benchmarks and never asserted on: two busy cores stall a test for a second
settings.register_profile("shoal", deadline=None)
settings.load_profile("shoal")
