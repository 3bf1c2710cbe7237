"""Environments of the peers: virtual environments of their own under one folder, made once.

ggml: its sources are in llama-cpp-python's source distribution, whose hash is checked; ggml, llama.cpp and its RPC
server are built, for this processor, and the distribution's Python binding is used where it lies. kt-kernel: its wheel
pins torch 2.9.1, so it is installed without its dependencies beside the torch that we run; what it imports is added.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import shoal.simulations
from shoal.simulations.bench.peers.members import GGML, HERE, KT, TRANSFORMERS

RECIPES = {
    GGML: (
        "numpy==2.4.6", "cmake==4.4.4", "ninja==1.13.0", "gguf==0.19.0", "safetensors==0.8.0",
        "diskcache==5.6.3", "jinja2==3.1.6", "typing_extensions==4.16.0",
    ),
    TRANSFORMERS: ("torch==2.13.0", "numpy==2.4.6", "transformers==5.23.0"),
    KT: (
        "torch==2.13.0", "numpy==2.4.6", "safetensors==0.8.0", "typer==0.29.2", "rich==15.0.0", "PyYAML==6.0.3",
        "httpx>=0.25", "packaging==26.3",
    ),
}  # fmt: skip
"""What pip installs first."""

LLAMA_CPP = "llama-cpp-python==0.3.36"
LLAMA_CPP_SHA256 = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"
"""Of its source distribution on PyPI."""

KT_WHEELS = ("kt-kernel==0.7.2", "gguf==0.19.0")
FURTHER = {GGML: (LLAMA_CPP,), KT: KT_WHEELS}
"""What is got in other ways."""

GGML_TARGETS = ("ggml", "ggml-cpu", "ggml-base", "llama", "ggml-rpc-server")
GGML_FLAGS = (
    "-DCMAKE_BUILD_TYPE=Release", "-DBUILD_SHARED_LIBS=ON", "-DGGML_NATIVE=ON", "-DGGML_RPC=ON", "-DLLAMA_CURL=OFF",
    "-DLLAMA_BUILD_COMMON=ON", "-DLLAMA_BUILD_TOOLS=ON",
    *(f"-DLLAMA_BUILD_{part}=OFF" for part in ("TESTS", "EXAMPLES", "SERVER", "APP")),
)  # fmt: skip
"""The RPC server is a tool, and tools want `common` to be configured; neither is built but for what is asked for."""
BINDING = "binding"
"""Folder to import `llama_cpp` from: a link to the sources' package, which has a link to what was built."""

MADE = "made"
"""A file with the recipe that an environment was made by."""

REASON_CHARS = 300


class NotAvailable(Exception):
    """A peer can not take part; the text says why."""


@dataclass(frozen=True, slots=True)
class Environment:
    """An interpreter, and what its programs find in their environment beyond ours."""

    interpreter: Path
    variables: dict[str, str] = field(default_factory=dict)


def environment(name: str, folder: Path, modules: Path) -> Environment:
    """The environment of that name, made in `folder` if it is not there yet. `modules`: a folder to import shoal from.

    Raises:
        NotAvailable: it can not be made here.
    """
    if name == HERE:
        return Environment(Path(sys.executable))
    home = folder.resolve() / name
    recipe = "\n".join((*RECIPES[name], *FURTHER.get(name, ()), *(GGML_TARGETS if name == GGML else ())))
    if not (home / MADE).exists() or (home / MADE).read_text(encoding="utf-8") != recipe:
        _make(name, home)
        (home / MADE).write_text(recipe, encoding="utf-8")
    variables = {"PYTHONPATH": str(modules)}
    if name == GGML:
        variables["SHOAL_GGML_LIBRARIES"] = str(home / "build" / "bin")
        variables["PYTHONPATH"] += f"{os.pathsep}{home / BINDING}"
        variables["GGML_NO_BACKTRACE"] = "1"  # where it aborts it says why, and calls no debugger
    return Environment(home / "bin" / "python", variables)


def importable(folder: Path) -> Path:
    """A folder whose only module is shoal, for interpreters that do not have it. Only peers' programs work there."""
    source = Path(shoal.simulations.__file__).resolve().parent.parent
    (folder / "shoal").symlink_to(source, target_is_directory=True)
    return folder


def _make(name: str, home: Path) -> None:
    shutil.rmtree(home, ignore_errors=True)
    _run(sys.executable, "-m", "venv", str(home))
    pip = (str(home / "bin" / "python"), "-m", "pip", "--quiet", "--disable-pip-version-check")
    _run(*pip, "install", *RECIPES[name])
    if name == KT:
        _run(*pip, "install", "--no-deps", *KT_WHEELS)
    if name == GGML:
        _build_llama_cpp(pip, home)


def _build_llama_cpp(pip: Sequence[str], home: Path) -> None:
    source, build = home / "source", home / "build"
    _run(*pip, "download", "--no-deps", "--no-binary", "llama-cpp-python", "--dest", str(source), LLAMA_CPP)
    (archive,) = source.glob("*.tar.gz")
    if (found := hashlib.sha256(archive.read_bytes()).hexdigest()) != LLAMA_CPP_SHA256:
        raise NotAvailable(f"{archive.name} has the hash {found}, expected {LLAMA_CPP_SHA256}")
    with tarfile.open(archive) as sources:
        sources.extractall(source, filter="data")
    (tree,) = source.glob("*/vendor/llama.cpp")
    cmake, ninja = str(home / "bin" / "cmake"), f"-DCMAKE_MAKE_PROGRAM={home / 'bin' / 'ninja'}"
    _run(cmake, "-G", "Ninja", ninja, "-S", str(tree), "-B", str(build), *GGML_FLAGS)
    _run(cmake, "--build", str(build), "--target", *GGML_TARGETS)
    package = tree.parent.parent / "llama_cpp"
    (package / "lib").symlink_to(build / "bin", target_is_directory=True)
    (home / BINDING).mkdir()
    (home / BINDING / package.name).symlink_to(package, target_is_directory=True)


def _run(*command: str) -> None:
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=variables)
    except OSError as error:
        raise NotAvailable(f"{Path(command[0]).name}: {error}") from error
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip())[-REASON_CHARS:]
        raise NotAvailable(f"{' '.join(Path(part).name for part in command[:4])} … failed: {said}")
