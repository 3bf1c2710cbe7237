"""llama.cpp and the small DeepSeek-V3 in both systems' formats, made once beside the peers' environments."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from shoal.simulations.bench.peers.environments import FURTHER, MADE, RECIPES, Environment, environment, importable
from shoal.simulations.bench.peers.members import GGML, TRANSFORMERS
from shoal.simulations.bench.peers.program import Program
from shoal.simulations.bench.peers.rpc_servers import RpcServer
from shoal.simulations.bench.peers.small_model import SEED, SHAPE

KEPT = "small_model"
"""Folder of the model among the environments: safetensors, GGUF, our manifest of it."""


@dataclass(frozen=True, slots=True)
class Peer:
    """Where llama.cpp and the model are."""

    environment: Environment
    kept: Path
    folder: Path
    """Of this run."""

    @property
    def model(self) -> Path:
        return self.kept / "model"

    @property
    def cache(self) -> Path:
        """Of what our nodes know of the model."""
        return self.kept / "cache"

    def program(self, name: str, servers: Sequence[RpcServer] = ()) -> Program:
        """A llama.cpp that decodes, with its layers on servers if there are any. name: of a folder for what it says."""
        place = self.folder / name
        place.mkdir()
        words = (str(self.model), str(self.kept / "model.gguf"), *(server.address for server in servers))
        return Program(self.environment, "decode_llama", *words, folder=place)


def open_peer(environments: Path, folder: Path) -> Peer:
    """Make what is not there yet. folder: empty, of this run.

    Raises:
        NotAvailable: llama.cpp or the model can not be had here.
    """
    (folder / "modules").mkdir()
    modules = importable(folder / "modules")
    peer = Peer(environment(GGML, environments, modules), environments.resolve() / KEPT, folder)
    recipe = "\n".join(map(str, (SEED, SHAPE, *RECIPES[TRANSFORMERS], *FURTHER[GGML])))
    if not (peer.kept / MADE).exists() or (peer.kept / MADE).read_text(encoding="utf-8") != recipe:
        shutil.rmtree(peer.kept, ignore_errors=True)
        peer.kept.mkdir(parents=True)
        _make(peer, environment(TRANSFORMERS, environments, modules))
        (peer.kept / MADE).write_text(recipe, encoding="utf-8")
    return peer


def _make(peer: Peer, transformers: Environment) -> None:
    """transformers makes the checkpoint, llama.cpp's side writes it as GGUF; each decodes a token."""
    with Program(transformers, "decode_transformers", str(peer.model), folder=peer.folder) as maker:
        maker.ask({"tokens": 1})
    with peer.program("converts") as converter:
        converter.ask({"tokens": 1, "streams": 1})
