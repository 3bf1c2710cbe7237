"""`shoal models`: which models, and which parts of them, are on this machine; more of them; fewer."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shoal.cli.boundary import reporting_errors, run_coroutine
from shoal.cli.options import JsonOption, parse_size
from shoal.client.translate import _

if TYPE_CHECKING:
    from shoal.cli.model_reports import ShownModel, ShownPull
    from shoal.experts.pieces.fetching import Fetched
    from shoal.experts.pieces.pieces import Piece
    from shoal.experts.pieces.shelf import Shelf, ShelfModel
    from shoal.node.weights.pulling import Plan, Pull, Wish
    from shoal.node.weights.pulling_from_peers import PeerPull

models_app = typer.Typer(no_args_is_help=True, help="Models on this machine: list, fetch, verify and remove them.")

StoreOption = Annotated[
    Path | None, typer.Option(help="Where pieces are kept. Default: the user's cache.", envvar="SHOAL_STORE")
]
DiskOption = Annotated[
    str | None, typer.Option(help="Most that the store may hold, e.g. 40GB; the longest unused goes first.")
]
ExpertsOption = Annotated[
    str, typer.Option(help="Which experts: all, none, 0-15 (of every layer), 3:0-31,4:5.")
]  # fmt: skip
TrunkOption = Annotated[bool, typer.Option(help="The rest of the model too, which clients run.")]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Say what it takes: bytes, disk, time; fetch nothing.")]
NameArgument = Annotated[str, typer.Argument(help="NAME, NAME@ROOT or the first digits of its root.")]


@models_app.command()
def ls(store: StoreOption = None, as_json: JsonOption = False) -> None:
    """List the models of this machine's store and how much of each is here."""
    with reporting_errors():
        from shoal.cli.model_reports import ShownModels, models_lines

        shelf = _shelf(store)
        models = tuple(_shown(shelf, model) for model in shelf.models())
        shown = ShownModels(str(shelf.root), shelf.store.size_bytes, models)
        print(json.dumps(asdict(shown)) if as_json else "\n".join(models_lines(shown)))


@models_app.command()
def pull(
    name: Annotated[
        str,
        typer.Argument(help="What to call the model here; NAME@ROOT trusts that root only. Not needed with --join."),
    ] = "",
    sources: Annotated[
        list[str] | None,
        typer.Option("--from", help="hf:OWNER/NAME@COMMIT, a mirror's URL or a directory; repeatable."),
    ] = None,
    join: Annotated[
        list[str] | None,
        typer.Option(help="A token: fetch its swarm's model from peers, and what none has from --from; repeatable."),
    ] = None,
    experts: ExpertsOption = "all",
    trunk: TrunkOption = True,
    manifest: Annotated[
        Path | None, typer.Option(help="The model's shoal.manifest.json. Default: the one beside the weights.")
    ] = None,
    dry_run: DryRunOption = False,
    store: StoreOption = None,
    disk: DiskOption = None,
    as_json: JsonOption = False,
) -> None:
    """Fetch a model, or a part of it; every byte is verified. Interrupted, it goes on where it was."""
    with reporting_errors():
        from shoal.node.weights.pulling import Wish
        from shoal.protocol.errors import InvalidRequest

        name, _at, root = name.partition("@")
        wish = Wish(name, tuple(sources or ()), experts, trunk, _root(root), manifest)
        shelf, shown = _shelf(store, disk), _Showing(dry_run, as_json)
        if join:
            run_coroutine(lambda: _pull_with_peers(wish, join, shelf, shown))
        elif not name:
            raise InvalidRequest("give the model's name, or --join TOKEN")
        else:
            run_coroutine(lambda: _pull(wish, shelf, shown))


@models_app.command("import")
def import_(
    directory: Annotated[Path, typer.Argument(help="Checkpoint directory, e.g. on a USB stick.")],
    name: Annotated[str | None, typer.Option(help="What to call it here. Default: the directory's name.")] = None,
    experts: ExpertsOption = "all",
    trunk: TrunkOption = True,
    dry_run: DryRunOption = False,
    store: StoreOption = None,
    disk: DiskOption = None,
    as_json: JsonOption = False,
) -> None:
    """Copy a checkpoint, or a part of it, into the store; its manifest is made if it ships none."""
    with reporting_errors():
        from shoal.cli.progress import ProgressBar
        from shoal.experts.locations import default_cache_dir
        from shoal.experts.manifest import MANIFEST_FILE, write_manifest
        from shoal.experts.manifest_maker import ModelFiles, manifest_of
        from shoal.node.weights.pulling import Wish

        shelf = _shelf(store, disk)
        made = shelf.root / "models" / f".{MANIFEST_FILE}"
        files = ModelFiles.open(directory)
        with files.checkpoint, ProgressBar() as bar:
            write_manifest(manifest_of(files, default_cache_dir(), partial(bar, _("hashing"))), made)
        wish = Wish(name or directory.resolve().name, (str(directory),), experts, trunk, manifest=made)
        run_coroutine(lambda: _pull(wish, shelf, _Showing(dry_run, as_json)))


@models_app.command()
def rm(name: NameArgument, store: StoreOption = None, as_json: JsonOption = False) -> None:
    """Remove a model and its pieces, unless a node serves it or another model has them too."""
    with reporting_errors():
        from shoal.cli.model_reports import ShownRemoved
        from shoal.cli.reports import size
        from shoal.experts.locations import default_cache_dir
        from shoal.experts.pieces.shelf import digests_of
        from shoal.node.weights.packing import forget_packed

        shelf = _shelf(store)
        model = shelf.find(name)
        pieces = digests_of(model.manifest())
        freed = shelf.remove(model) + forget_packed(default_cache_dir(), pieces)
        shown = ShownRemoved(model.name, model.root.hex(), freed)
        words = _("removed {name}; {size} are free again").format(name=model.name, size=size(freed))
        print(json.dumps(asdict(shown)) if as_json else words)


@models_app.command()
def verify(name: NameArgument, store: StoreOption = None, as_json: JsonOption = False) -> None:
    """Read and hash all that is here of a model; removes what is damaged, and exits 6 if something was."""
    with reporting_errors():
        from shoal.cli.model_reports import ShownVerified, verified_lines

        shelf = _shelf(store)
        model = shelf.find(name)
        names = _piece_names(model)
        there = [piece for piece in shelf.store.pieces() if piece.digest in names]
        damaged = shelf.store.verify([piece.digest for piece in there])
        size_bytes = sum(piece.size_bytes for piece in there)
        shown = ShownVerified(
            model.name, model.root.hex(), len(there), size_bytes, tuple(names[digest] for digest in damaged)
        )
        print(json.dumps(asdict(shown)) if as_json else "\n".join(verified_lines(shown)))
        if damaged:
            raise SystemExit(6)


@dataclass(frozen=True, slots=True)
class _Showing:
    """What the user wants to see of a pull."""

    is_dry_run: bool
    as_json: bool


async def _pull(wish: "Wish", shelf: "Shelf", showing: _Showing) -> None:
    from shoal.node.weights.pulling import planned

    async with planned(wish, shelf) as pulled:
        await _shown_run(pulled, showing)


async def _pull_with_peers(wish: "Wish", join: Sequence[str], shelf: "Shelf", showing: _Showing) -> None:
    import time

    from shoal.cli.progress import ProgressBar
    from shoal.cli.token_model import Telling, on_stderr, token_in
    from shoal.node.weights.by_token import TokenWish
    from shoal.node.weights.pulling_from_peers import planned_with_peers
    from shoal.protocol.errors import InvalidRequest

    if wish.manifest is not None:
        raise InvalidRequest("the token says which manifest it is; give one of --join and --manifest")
    token = TokenWish(token_in(join), tuple(join), time.time)
    with ProgressBar() as bar:
        async with planned_with_peers(wish, token, shelf, Telling(bar, on_stderr).progress) as pulled:
            bar.stop()
            await _shown_run(pulled, showing)


async def _shown_run(pulled: "Pull | PeerPull", showing: _Showing) -> None:
    import sys

    from shoal.cli.model_reports import plan_lines, pull_lines
    from shoal.cli.progress import ProgressBar

    if showing.is_dry_run:
        shown = _shown_pull(pulled.plan, forecast_s=await pulled.forecast_s())
        print(json.dumps(asdict(shown)) if showing.as_json else "\n".join(plan_lines(shown)))
        return
    print("\n".join(plan_lines(_shown_pull(pulled.plan))), file=sys.stderr)
    with ProgressBar() as bar:
        fetched = await pulled.run(partial(bar, _("fetching")))
    shown = _shown_pull(pulled.plan, fetched)
    print(json.dumps(asdict(shown)) if showing.as_json else "\n".join(pull_lines(shown)))


def _shown_pull(plan: "Plan", fetched: "Fetched | None" = None, forecast_s: float | None = None) -> "ShownPull":
    from shoal.cli.model_reports import ShownPull, ShownSource

    sources = [
        ShownSource(each.name, each.num_pieces, each.size_bytes, str(each.dropped) if each.dropped else None)
        for each in (fetched.sources if fetched else ())
    ]
    return ShownPull(
        name=plan.name,
        root=plan.root.hex(),
        num_pieces=len(plan.pieces),
        num_missing=len(plan.missing),
        missing_bytes=plan.missing_bytes,
        free_bytes=plan.free_bytes,
        fits=plan.missing_bytes <= plan.free_bytes,
        num_nowhere=plan.num_nowhere,
        forecast_s=forecast_s,
        num_fetched=fetched.num_pieces if fetched else 0,
        fetched_bytes=fetched.size_bytes if fetched else 0,
        sources=tuple(sources),
    )


def _shelf(store: Path | None, disk: str | None = None) -> "Shelf":
    from shoal.experts.pieces.shelf import Shelf, default_store_dir

    return Shelf(store or default_store_dir(), parse_size(disk))


def _root(words: str) -> bytes | None:
    from shoal.protocol.errors import InvalidRequest

    if not words:
        return None
    try:
        root = bytes.fromhex(words)
    except ValueError:
        root = b""
    if not 4 <= len(root) <= 32:
        raise InvalidRequest(f"{words!r:.80} is no root; write its first 8 digits or more, an even number of them")
    return root


def _shown(shelf: "Shelf", model: "ShelfModel") -> "ShownModel":
    from shoal.cli.model_reports import ShownModel

    manifest = model.manifest()
    there = {piece.digest: piece.size_bytes for piece in shelf.store.pieces()}
    experts = [digest for digests in manifest.experts.values() for digest in digests]
    trunk = [leaf.digest for leaf in manifest.trunk.values()]
    return ShownModel(
        name=model.name,
        root=model.root.hex(),
        weight_format=manifest.weight_format.name.lower(),
        num_experts=len(experts),
        num_experts_here=_count(experts, there),
        num_trunk_tensors=len(trunk),
        num_trunk_tensors_here=_count(trunk, there),
        size_bytes=sum(there.get(digest, 0) for digest in {*experts, *trunk}),
    )


def _count(digests: Sequence[bytes], there: dict[bytes, int]) -> int:
    return sum(digest in there for digest in digests)


def _piece_names(model: "ShelfModel") -> dict[bytes, str]:
    from shoal.experts.pieces.pieces import all_experts, expert_pieces, trunk_pieces

    manifest = model.manifest()
    pieces: list[Piece] = [*expert_pieces(manifest, all_experts(manifest)), *trunk_pieces(manifest)]
    return {piece.digest: piece.name for piece in pieces}
