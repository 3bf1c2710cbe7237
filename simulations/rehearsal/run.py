"""The rehearsal, in order: write the checkpoint, hash, plan, fetch, verify, be refused, assign. Leaves nothing behind.

Composes the other files of this folder; what it returns is for `report.py`.
"""

import asyncio
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from shoal.experts.checkpoint import INDEX_FILE, Checkpoint
from shoal.experts.family import CONFIG_FILE, ModelSpec, model_spec
from shoal.experts.manifest import MANIFEST_FILE, Manifest, write_manifest
from shoal.experts.pieces.layout import LAYOUT_FILE, write_layout
from shoal.experts.pieces.pieces import expert_pieces
from shoal.experts.pieces.shelf import Shelf
from shoal.experts.shard import expert_tensor_names
from shoal.node.holdings.assignment import Holding
from shoal.node.holdings.placement import Shape
from shoal.protocol.ids import ExpertId, PeerId
from shoal.simulations.local_hub import local_hub
from shoal.simulations.rehearsal.assigning import Assigned, Costs, assign, own_choice
from shoal.simulations.rehearsal.fetching import Pulled, Puller, Refused, Twice, expert_words, flip_a_bit
from shoal.simulations.rehearsal.hashing import Hashed, hash_layers, hash_rate
from shoal.simulations.rehearsal.layout import DEEPSEEK_V3_1, PublishedShape
from shoal.simulations.rehearsal.sparse import SparseCheckpoint, write_sparse

PEER = PeerId("rehearsal")
"""Whose choice is fetched."""


@dataclass(frozen=True, slots=True)
class RehearsalSettings:
    """How large a rehearsal is."""

    shape: PublishedShape = DEEPSEEK_V3_1
    share_bytes: int = 8 * 10**9
    """Of each node."""
    num_nodes: int = 200
    hours: float = 24.0
    """Of churn."""
    num_jobs: int = 2
    """Threads that hash."""
    steps: tuple[int, ...] = (1, 4, 16, 58)
    """How many experts are fetched into a new store, and as many others then."""


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """What came out."""

    settings: RehearsalSettings
    checkpoint: SparseCheckpoint
    written_s: float
    hashed: Hashed
    hash_bytes_per_s: float
    """BLAKE3 alone, one thread."""
    manifest_bytes: int
    planned_bytes: int
    plan_s: float
    layout_bytes: int
    published: tuple[Twice, ...]
    """By `steps`, of a repository that has an index and headers."""
    told: tuple[Twice, ...]
    """The same, with `shoal.layout` beside the manifest."""
    whole: Pulled
    """All that a node holds, as published."""
    verified_bytes: int
    verify_s: float
    num_damaged: int
    refused: Refused
    assigned: Assigned
    expected_wire_bytes: tuple[int, ...]
    """Of each first fetch as published and of `whole`, by the costs that the assignment is reckoned with."""


async def rehearse(settings: RehearsalSettings, scratch: Path, environment: Mapping[str, str]) -> Rehearsal:
    """Run all of it in `scratch`, which is to be empty; what is in it afterwards is the caller's to remove.

    Raises:
        OSError: no room, or a file system without holes. RuntimeError: a command failed that must not.
    """
    spec = model_spec(settings.shape.config())
    expert_bytes = _expert_bytes(settings.shape)
    holding = own_choice(Shape.of(spec), settings.share_bytes // expert_bytes, PEER)
    layers = sorted(holding)
    directory, begun_s = scratch / "checkpoint", time.perf_counter()
    filled = tuple(f"model.layers.{layer}.mlp.experts." for layer in layers)
    checkpoint = write_sparse(directory, settings.shape, lambda name: name.startswith(filled))
    written_s = time.perf_counter() - begun_s
    hashed = hash_layers(directory, layers, settings.num_jobs)
    write_manifest(hashed.manifest, directory / MANIFEST_FILE)
    costs, parts = _costs(directory, spec, expert_bytes), [_part(holding, 0, step) for step in settings.steps]
    async with local_hub(directory) as hub:
        puller = Puller(hub, scratch, environment)
        planned_bytes, plan_s = await puller.plan(expert_words(holding))
        published = [await _twice(puller, holding, step) for step in settings.steps]
        layout_bytes = await asyncio.to_thread(write_layout, directory)
        told = [await _twice(puller, holding, step) for step in settings.steps]
        (directory / LAYOUT_FILE).unlink()
        whole = await puller.pull("store", expert_words(holding))
        store = puller.store("store")
        verified_bytes, verify_s, num_damaged = await asyncio.to_thread(_verify, store, hashed.manifest, holding)
        refused = await _damage_and_pull(puller, directory, spec, holding)
    return Rehearsal(
        settings=settings,
        checkpoint=checkpoint,
        written_s=written_s,
        hashed=hashed,
        hash_bytes_per_s=hash_rate(),
        manifest_bytes=(directory / MANIFEST_FILE).stat().st_size,
        planned_bytes=planned_bytes,
        plan_s=plan_s,
        layout_bytes=layout_bytes,
        published=tuple(published),
        told=tuple(told),
        whole=whole,
        verified_bytes=verified_bytes,
        verify_s=verify_s,
        num_damaged=num_damaged,
        refused=refused,
        assigned=assign(Shape.of(spec), costs, settings.num_nodes, settings.share_bytes, settings.hours),
        expected_wire_bytes=tuple(costs.wire_bytes(part) for part in (*parts, holding)),
    )


def _expert_bytes(shape: PublishedShape) -> int:
    """Of one expert's tensors."""
    weights = 3 * shape.hidden * shape.inter
    rows, columns = -(-shape.inter // 128), -(-shape.hidden // 128)
    return weights + 3 * 4 * rows * columns


def _part(holding: Holding, begin: int, num_experts: int) -> Holding:
    """Some experts of a holding, by their place in it."""
    part: Holding = {}
    places = [(layer, expert) for layer, experts in holding.items() for expert in experts]
    for layer, expert in places[begin : begin + num_experts]:
        part[layer] = (*part.get(layer, ()), expert)
    return part


async def _twice(puller: Puller, holding: Holding, num_experts: int) -> Twice:
    """Fetch experts into a store that is made for it and removed, then as many others."""
    parts = [expert_words(_part(holding, begin, num_experts)) for begin in (0, num_experts)]
    found = Twice(*[await puller.pull("twice", words) for words in parts])
    await asyncio.to_thread(shutil.rmtree, puller.store("twice"))
    return found


def _verify(store: Path, manifest: Manifest, holding: Holding) -> tuple[int, float, int]:
    """Read and hash again what was fetched: bytes, seconds, damaged pieces."""
    shelf = Shelf(store)
    wanted = [(layer, expert) for layer, experts in holding.items() for expert in experts]
    digests = [piece.digest for piece in expert_pieces(manifest, wanted)]
    begun_s = time.perf_counter()
    damaged = shelf.store.verify(digests)
    return shelf.store.size_bytes, time.perf_counter() - begun_s, len(damaged)


async def _damage_and_pull(puller: Puller, directory: Path, spec: ModelSpec, holding: Holding) -> Refused:
    """Flip a bit of an expert at the hub, and ask for that expert."""
    layer = min(holding)
    expert = holding[layer][-1]
    with Checkpoint.open(directory) as checkpoint:
        name = spec.expert_tensor(layer, expert, "up")
        file = checkpoint.file_of(name)
        position = checkpoint.open_file(file).data_start + checkpoint.entry(name).begin + 77
    flip_a_bit(directory / file, position)
    return await puller.refused("refused", expert_words({layer: (expert,)}))


def _costs(directory: Path, spec: ModelSpec, expert_bytes: int) -> Costs:
    """What fetches of this checkpoint cost."""
    with Checkpoint.open(directory) as checkpoint:
        files_of = {
            (layer, expert): frozenset(map(checkpoint.file_of, expert_tensor_names(checkpoint, spec, layer, expert)))
            for layer in spec.moe_layers
            for expert in map(ExpertId, range(spec.router.num_experts))
        }
        headers = {file: len(checkpoint.open_file(file).header) for file in checkpoint.files}
    fixed = sum(os.path.getsize(directory / name) for name in (INDEX_FILE, MANIFEST_FILE, CONFIG_FILE))
    return Costs(expert_bytes, fixed, headers, files_of)
