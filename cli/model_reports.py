"""What `shoal models` prints: one dataclass for each `--json`, and the lines that people read."""

from dataclasses import dataclass

from shoal.cli.reports import rate, size
from shoal.client.translate import _


@dataclass(frozen=True, slots=True)
class ShownModel:
    """A model of this machine's store."""

    name: str
    root: str
    weight_format: str
    num_experts: int
    num_experts_here: int
    num_trunk_tensors: int
    num_trunk_tensors_here: int
    size_bytes: int
    """Of its pieces that are here."""


@dataclass(frozen=True, slots=True)
class ShownModels:
    """`shoal models ls --json`."""

    store: str
    size_bytes: int
    models: tuple[ShownModel, ...]


@dataclass(frozen=True, slots=True)
class ShownSource:
    """What a source gave."""

    name: str
    num_pieces: int
    size_bytes: int
    dropped: str | None
    """Why it was not asked any more."""


@dataclass(frozen=True, slots=True)
class ShownPull:
    """`shoal models pull --json`, and `import`'s. With `--dry-run` nothing is fetched and `forecast_s` is told."""

    name: str
    root: str
    num_pieces: int
    num_missing: int
    missing_bytes: int
    free_bytes: int
    """On the store's disk, before."""
    fits: bool
    num_nowhere: int
    """Of the missing pieces, those that no peer and no source has now; told with `--join`."""
    forecast_s: float | None
    num_fetched: int
    fetched_bytes: int
    sources: tuple[ShownSource, ...]


@dataclass(frozen=True, slots=True)
class ShownVerified:
    """`shoal models verify --json`: of the pieces that are here."""

    name: str
    root: str
    num_verified: int
    size_bytes: int
    damaged: tuple[str, ...]
    """Removed; `shoal models pull` brings them again."""


@dataclass(frozen=True, slots=True)
class ShownRemoved:
    """`shoal models rm --json`."""

    name: str
    root: str
    freed_bytes: int


def models_lines(shown: ShownModels) -> list[str]:
    """`shoal models ls`."""
    lines = [
        _("{name}@{root}  {experts} of {all_experts} experts, {tensors} of {all_tensors} other tensors, {size}").format(
            name=each.name, root=each.root[:8], experts=each.num_experts_here, all_experts=each.num_experts,
            tensors=each.num_trunk_tensors_here, all_tensors=each.num_trunk_tensors, size=size(each.size_bytes),
        )
        for each in shown.models
    ]  # fmt: skip
    return [*lines, _("{size} in {place}").format(size=size(shown.size_bytes), place=shown.store)]


def plan_lines(shown: ShownPull) -> list[str]:
    """What a pull will do."""
    lines = [
        _("{name}@{root}: {missing} of {pieces} pieces to fetch, {bytes} bytes; {free} free").format(
            name=shown.name, root=shown.root[:8], missing=shown.num_missing, pieces=shown.num_pieces,
            bytes=shown.missing_bytes, free=size(shown.free_bytes),
        )
    ]  # fmt: skip
    if not shown.fits:
        lines.append(_("this does not fit the disk"))
    if shown.num_nowhere:
        lines.append(_("{number} of them nobody has now").format(number=shown.num_nowhere))
    if shown.forecast_s:
        lines.append(
            _("about {minutes:.1f} minutes, at {rate}").format(
                minutes=shown.forecast_s / 60, rate=rate(shown.missing_bytes / shown.forecast_s)
            )
        )
    return lines


def pull_lines(shown: ShownPull) -> list[str]:
    """What a pull did."""
    lines = [
        _("{source}: {pieces} pieces, {size}").format(
            source=each.name, pieces=each.num_pieces, size=size(each.size_bytes)
        )
        + (f"; {each.dropped}" if each.dropped else "")
        for each in shown.sources
    ]
    fetched = _("{name}@{root}: fetched {pieces} pieces, {size}, each verified")
    return [
        *lines,
        fetched.format(
            name=shown.name, root=shown.root[:8], pieces=shown.num_fetched, size=size(shown.fetched_bytes)
        ),
    ]  # fmt: skip


def verified_lines(shown: ShownVerified) -> list[str]:
    """`shoal models verify`."""
    told = _("{name}@{root}: {pieces} pieces, {size}, {damaged} damaged and removed")
    return [
        *shown.damaged,
        told.format(
            name=shown.name, root=shown.root[:8], pieces=shown.num_verified, size=size(shown.size_bytes),
            damaged=len(shown.damaged),
        ),
    ]  # fmt: skip
