"""A whole model directory against its manifest: every byte read, every damage named.

`shoal manifest verify`. Where `store.py` refuses the first wrong weight, this goes on and lists them all. Knows
directories; knows no stores and no kernels.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from shoal.experts.checkpoint import StoredTensor
from shoal.experts.digest import digest_tensors
from shoal.experts.manifest import Manifest, verify_trunk_tensor
from shoal.experts.manifest_maker import Meter, ModelFiles, Progress, trunk_names
from shoal.experts.parallel import mapped
from shoal.experts.shard import read_shard
from shoal.protocol.errors import CheckpointError
from shoal.protocol.ids import ExpertId, LayerId


@dataclass(frozen=True, slots=True)
class Damage:
    """A weight that is not the manifest's."""

    what: str
    """`expert 3:17` or a tensor's name."""
    reason: str
    """Names file and tensor."""


@dataclass(frozen=True, slots=True)
class CheckedModel:
    """What a check found."""

    num_experts: int
    num_trunk_tensors: int
    size_bytes: int
    damages: tuple[Damage, ...]


@dataclass(frozen=True, slots=True)
class _Checked:
    size_bytes: int
    damage: Damage | None


def check_model(
    files: ModelFiles, manifest: Manifest, num_jobs: int = 1, progress: Progress | None = None
) -> CheckedModel:
    """Read and hash every expert and trunk tensor. Memory: one of them per job.

    Raises:
        CheckpointError: a header or the index is damaged, so that nothing can be read. What `progress` raises.
    """
    meter, size_bytes, damages = Meter(files, progress), 0, []
    experts = [(layer, ExpertId(i)) for layer, digests in manifest.experts.items() for i in range(len(digests))]
    trunk = trunk_names(files)
    for checked in _check_all(files, manifest, experts, trunk, num_jobs):
        size_bytes += checked.size_bytes
        meter.advance(checked.size_bytes)
        if checked.damage is not None:
            damages.append(checked.damage)
    return CheckedModel(len(experts), len(trunk), size_bytes, tuple(damages))


def _check_all(
    files: ModelFiles,
    manifest: Manifest,
    experts: list[tuple[LayerId, ExpertId]],
    trunk: list[str],
    num_jobs: int,
) -> Iterator[_Checked]:
    def check_expert(place: tuple[LayerId, ExpertId]) -> _Checked:
        return _judged(f"expert {place[0]}:{place[1]}", lambda: _check_expert(files, manifest, *place, num_jobs <= 1))

    def check_tensor(name: str) -> _Checked:
        return _judged(name, lambda: _check_tensor(files, manifest, name))

    yield from mapped(check_expert, experts, num_jobs)
    yield from mapped(check_tensor, trunk, num_jobs)


def _check_expert(files: ModelFiles, manifest: Manifest, layer: LayerId, expert: ExpertId, is_alone: bool) -> int:
    shard = read_shard(files.checkpoint, files.spec, layer, expert)
    if digest_tensors(shard.tensors, is_alone=is_alone) != manifest.expert_digest(layer, expert):
        where = " and ".join(sorted({tensor.file for tensor in shard.tensors}))
        raise CheckpointError(where, shard.name + ".*", "not the bytes, names or shapes of the manifest")
    return shard.size_bytes


def _check_tensor(files: ModelFiles, manifest: Manifest, name: str) -> int:
    tensor: StoredTensor = files.checkpoint.read(name)
    verify_trunk_tensor(manifest, tensor)
    return tensor.data.nbytes


def _judged(what: str, check: Callable[[], int]) -> _Checked:
    try:
        return _Checked(check(), None)
    except CheckpointError as error:
        return _Checked(0, Damage(what, str(error)))
