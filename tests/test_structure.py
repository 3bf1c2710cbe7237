"""Rules of the whole tree that no type checker knows: what may be imported where, and what is never done."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("protocol", "kernels", "experts", "node", "client", "simulations", "cli")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))

OWNERS = {
    # the composition roots read the wall clock once and pass it down
    "time": ("node/starting.py", "node/host.py", "client/swarm.py", "simulations/", "cli/"),
    "random": ("simulations/",),
    "secrets": ("client/swarm.py", "client/engine/generate.py"),
    "socket": ("protocol/net/", "simulations/"),
    "transformers": ("simulations/bench/peers/decode_transformers.py",),  # in an environment of its own
    "textual": ("client/tui/",),
    "textual_serve": ("client/tui/web.py",),
    "aiohttp": ("client/tui/web.py",),
    "triton": ("kernels/cuda/programs.py",),
    "zeroconf": ("protocol/net/mdns.py",),
    "pickle": (),
    "marshal": (),
    "shelve": (),
    "torch": ("protocol/tensors.py", "kernels/", "experts/", "client/", "node/", "simulations/"),
}
"""Modules that only some files may import; a folder stands for all its files."""


def imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            yield node.module.split(".")[0]


def called(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_imports_only_what_it_may(path: Path) -> None:
    name = str(path.relative_to(ROOT))
    for module in imported(ast.parse(path.read_text(encoding="utf-8"))):
        owners = OWNERS.get(module)
        assert owners is None or name.startswith(owners), f"{name} imports {module}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_runs_no_code_from_data(path: Path) -> None:
    banned = {"eval", "exec", "compile", "torch.load", "os.system", "yaml.load", "np.load", "numpy.load", "__import__"}
    assert not banned & set(called(ast.parse(path.read_text(encoding="utf-8"))))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_says_what_it_is(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), "a module begins with what it is"


def test_no_file_is_a_drawer_for_odds_and_ends() -> None:
    assert not [path for path in SOURCES if path.stem in {"utils", "helpers", "common", "misc"}]


def test_every_package_of_the_tree_is_in_the_wheel() -> None:
    import tomllib

    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert sorted(settings["tool"]["scikit-build"]["wheel"]["packages"].values()) == sorted(PACKAGES)
