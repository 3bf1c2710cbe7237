"""Settings of the whole test suite."""

import importlib.util
import os
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import settings

SAME_EVERY_TIME = ("kernels", "client/text", "client/trunk", "simulations/forecast", "simulations/virtual")
"""Rooms whose tests depend on nothing but their input and seed: they get one try."""

# time is measured by benchmarks and never asserted on: two busy cores stall a test for a second; the same examples in
# every run, so that a build fails by what was changed
settings.register_profile("shoal", deadline=None, derandomize=True)
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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A second try for tests of processes, sockets and screens: thousands of them in a row on a busy machine.

    The summary counts and names what was tried again, and why: such a test has to be mended.
    """
    rooms = tuple(Path(__file__).parent / room for room in SAME_EVERY_TIME)
    for item in items:
        if not any(item.path.is_relative_to(room) for room in rooms):
            item.add_marker(pytest.mark.flaky(reruns=1))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Why tests were tried again; `--fail-on-flaky` makes that a failure."""
    for report in terminalreporter.stats.get("rerun", []):
        terminalreporter.section(f"first try of {report.nodeid}")
        terminalreporter.write_line(report.longreprtext)
