"""The exact versions that `make demo` installs can be installed together, from PyPI too."""

import re
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]

TRITON_OF_TORCH = {"2.13.0": "3.7.1"}
"""PyPI's torch for Linux demands exactly one triton; builds for the CPU demand none, so only a table can tell
(`Requires-Dist` of torch's wheel: `pip download --no-deps torch==VERSION`, or its page on PyPI)."""


def _pinned(name: str) -> str:
    found = re.search(rf"^{name}==(\S+)$", (REPOSITORY / "constraints.txt").read_text(), re.MULTILINE)
    assert found is not None
    return found[1]


def test_triton_is_the_version_that_pypis_torch_demands():
    assert _pinned("triton") == TRITON_OF_TORCH[_pinned("torch")]


def test_the_development_extra_pins_the_same_triton():
    assert f'"triton=={_pinned("triton")};' in (REPOSITORY / "pyproject.toml").read_text()
