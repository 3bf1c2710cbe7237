"""Which program this is: what the outcome of a seed depends on, in one word. Results of two of them are never mixed."""

import platform
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import torch
from blake3 import blake3

FOLDERS = ("protocol", "kernels", "experts", "client", "node", "simulations/virtual", "simulations/demo_model")
"""What a seed runs. A change anywhere here may change its schedule: a seed is the order of the program's steps."""

SUFFIXES = frozenset({".py", ".json", ".safetensors"})


def program_version() -> str:
    """16 hexadecimal digits: of all source files that a seed runs, the model, the compiled kernels, torch, Python."""
    root = Path(__file__).resolve().parents[2]
    seen = blake3(f"torch {torch.__version__} python {platform.python_version()}".encode())
    for path in _files(root):
        seen.update(path.relative_to(root).as_posix().encode() + b"\0" + blake3(path.read_bytes()).digest())
    if (native := find_spec("shoal.kernels._native")) and native.origin:
        seen.update(blake3(Path(native.origin).read_bytes()).digest())
    return seen.hexdigest(8)


def _files(root: Path) -> Iterator[Path]:
    for folder in FOLDERS:
        yield from sorted(path for path in (root / folder).rglob("*") if path.suffix in SUFFIXES)
