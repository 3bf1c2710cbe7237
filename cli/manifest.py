"""`shoal manifest`: a model's hashes: made once by whoever has the checkpoint, checked by everybody else."""

import json
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shoal.cli.boundary import reporting_errors
from shoal.cli.options import JsonOption
from shoal.client.translate import _

if TYPE_CHECKING:
    from shoal.experts.manifest import Manifest

manifest_app = typer.Typer(no_args_is_help=True, help="A model's hashes: make, verify, show and sign them.")

DirectoryArgument = Annotated[Path, typer.Argument(help="Checkpoint directory.")]
ModelArgument = Annotated[
    Path, typer.Argument(help="Checkpoint directory, or a model of the store: NAME or NAME@ROOT.")
]
JobsOption = Annotated[int, typer.Option(help="Threads; each has one expert in memory.", min=1, max=256)]


@dataclass(frozen=True, slots=True)
class ShownManifest:
    """`shoal manifest show --json`, and what `make` and `sign` print."""

    root: str
    model_type: str
    weight_format: str
    num_experts: int
    num_trunk_tensors: int
    layers: tuple[int, ...]
    has_probes: bool
    signed_by: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ShownDamage:
    """A weight that is not the manifest's."""

    what: str
    reason: str


@dataclass(frozen=True, slots=True)
class ShownCheck:
    """`shoal manifest verify --json`."""

    root: str
    num_experts: int
    num_trunk_tensors: int
    size_bytes: int
    signed_by: tuple[str, ...]
    damages: tuple[ShownDamage, ...]


@dataclass(frozen=True, slots=True)
class ShownProof:
    """`shoal manifest show --proof`. `proof`: bytes as of `experts/merkle_proof.py`, hex."""

    root: str
    layer: int
    expert: int
    digest: str
    proof: str


@manifest_app.command()
def make(
    directory: DirectoryArgument,
    jobs: JobsOption = 1,
    probes: Annotated[
        bool, typer.Option(help="Known answers too, which clients ask of holders; slower than the hashing.")
    ] = True,
    as_json: JsonOption = False,
) -> None:
    """Read every weight once and write shoal.manifest.json beside them, and shoal.layout: where each tensor is."""
    with reporting_errors():
        from shoal.cli.progress import ProgressBar
        from shoal.experts.manifest import MANIFEST_FILE, write_manifest
        from shoal.experts.manifest_maker import Making, make_manifest
        from shoal.experts.pieces.layout import write_layout

        _check_no_pieces(directory)
        with ProgressBar() as bar:
            made = make_manifest(directory, partial(bar, _("hashing")), Making(probes, jobs))
        write_manifest(made, directory / MANIFEST_FILE)
        write_layout(directory)
        _print(made, directory, as_json)


@manifest_app.command()
def verify(directory: DirectoryArgument, jobs: JobsOption = 1, as_json: JsonOption = False) -> None:
    """Read every weight and name those that are not the manifest's; exits 6 if there are some."""
    with reporting_errors():
        from shoal.cli.progress import ProgressBar
        from shoal.experts.manifest import MANIFEST_FILE, load_manifest
        from shoal.experts.manifest_maker import ModelFiles, check_manifest
        from shoal.experts.manifest_signature import SIGNATURE_FILE, signers
        from shoal.experts.model_check import check_model

        _check_no_pieces(directory)
        manifest = load_manifest(directory / MANIFEST_FILE)
        files = ModelFiles.open(directory)
        with files.checkpoint, ProgressBar() as bar:
            check_manifest(manifest, files)
            found = check_model(files, manifest, jobs, partial(bar, _("verifying")))
        signed_by = tuple(map(str, signers(directory / SIGNATURE_FILE, manifest.root)))
        damages = tuple(ShownDamage(each.what, each.reason) for each in found.damages)
        shown = ShownCheck(
            manifest.root.hex(), found.num_experts, found.num_trunk_tensors, found.size_bytes, signed_by, damages
        )
        print(json.dumps(asdict(shown)) if as_json else "\n".join(_check_lines(shown)))
        if damages:
            raise SystemExit(6)


@manifest_app.command()
def show(
    directory: ModelArgument,
    proof: Annotated[
        str | None, typer.Option(help="LAYER:EXPERT: print the proof that this expert belongs to the root.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Say what a manifest is of and who signed it; reads no weight."""
    with reporting_errors():
        from shoal.cli.model_words import model_directory
        from shoal.experts.manifest import MANIFEST_FILE, load_manifest

        directory = model_directory(directory)
        manifest = load_manifest(directory / MANIFEST_FILE)
        if proof is None:
            _print(manifest, directory, as_json)
        else:
            print(json.dumps(asdict(_proof(manifest, proof))))


@manifest_app.command()
def prove(
    proof: Annotated[str, typer.Argument(help="The proof, hex, as `shoal manifest show --proof` prints it.")],
    root: Annotated[str, typer.Option(help="The root that you trust, 64 digits.")],
    piece: Annotated[
        Path | None, typer.Option(help="A file of the store, or of anybody, that is to be this expert.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Check with nothing but a model's root that an expert belongs to it, and that a file is that expert.

    Exits 6 if it does not, or the file is another.
    """
    with reporting_errors():
        from shoal.experts.merkle_proof import check_proof, decode_proof
        from shoal.protocol.errors import CheckpointError

        found = decode_proof(_hex(proof, "proof"))
        check_proof(found, _hex(root, "root"))
        if piece is not None and _digest_of(piece) != found.digest:
            raise CheckpointError(piece.name, None, f"not expert {found.layer}:{found.expert} of this model")
        shown = ShownProof(root, found.layer, found.expert, found.digest.hex(), proof)
        words = _("expert {layer}:{expert} belongs to it, and has BLAKE3 {digest}")
        told = words.format(layer=shown.layer, expert=shown.expert, digest=shown.digest)
        print(json.dumps(asdict(shown)) if as_json else told)


def _hex(words: str, what: str) -> bytes:
    from shoal.protocol.errors import InvalidRequest

    try:
        return bytes.fromhex(words)
    except ValueError:
        raise InvalidRequest(f"{words[:80]!r} is no {what}; write hex digits") from None


def _digest_of(path: Path) -> bytes:
    from blake3 import blake3

    from shoal.protocol.errors import InvalidRequest

    try:
        return blake3().update_mmap(path).digest()
    except OSError as error:
        raise InvalidRequest(f"{path} can not be read: {error.strerror}") from error


@manifest_app.command()
def sign(
    directory: ModelArgument,
    identity: Annotated[Path, typer.Option(help="Key file, as of `shoal node --identity`; made when missing.")],
    as_json: JsonOption = False,
) -> None:
    """Add a signature over the root to shoal.manifest.sig: the holder of this key published these weights."""
    with reporting_errors():
        import os

        from shoal.cli.model_words import model_directory
        from shoal.experts.manifest import MANIFEST_FILE, load_manifest
        from shoal.experts.manifest_signature import SIGNATURE_FILE, add_signature
        from shoal.protocol.identity import load_or_create_identity

        directory = model_directory(directory)
        manifest = load_manifest(directory / MANIFEST_FILE)
        add_signature(directory / SIGNATURE_FILE, load_or_create_identity(identity, os.urandom(32)), manifest.root)
        _print(manifest, directory, as_json)


def _check_no_pieces(directory: Path) -> None:
    """Raises InvalidRequest if this is a model of the store, whose pieces are what its manifest says or nothing."""
    from shoal.cli.model_words import model_directory
    from shoal.experts.pieces.shelf import NOTE_FILE, read_note
    from shoal.protocol.errors import InvalidRequest

    found = model_directory(directory)
    if (found / NOTE_FILE).is_file():
        name = read_note(found).name
        raise InvalidRequest(
            f"{name} is in pieces, and its manifest is what they came by; try: shoal models verify {name}"
        )


def _print(manifest: "Manifest", directory: Path, as_json: bool) -> None:
    from shoal.experts.manifest_signature import SIGNATURE_FILE, signers

    shown = ShownManifest(
        root=manifest.root.hex(),
        model_type=manifest.model_type,
        weight_format=manifest.weight_format.name.lower(),
        num_experts=manifest.num_experts,
        num_trunk_tensors=len(manifest.trunk),
        layers=tuple(sorted(manifest.experts)),
        has_probes=bool(manifest.probes),
        signed_by=tuple(map(str, signers(directory / SIGNATURE_FILE, manifest.root))),
    )
    print(json.dumps(asdict(shown)) if as_json else "\n".join(_manifest_lines(shown)))


def _manifest_lines(shown: ShownManifest) -> list[str]:
    of = _("{model_type}, {format}, {experts} experts in {layers} layers, {tensors} other tensors")
    lines = [
        _("root:      {root}").format(root=shown.root),
        _("model:     {words}").format(
            words=of.format(
                model_type=shown.model_type, format=shown.weight_format, experts=shown.num_experts,
                layers=len(shown.layers), tensors=shown.num_trunk_tensors,
            )
        ),
    ]  # fmt: skip
    if not shown.has_probes:
        lines.append(_("probes:    none; nodes cannot serve by this manifest"))
    return lines + [_("signed by: {peer}").format(peer=peer) for peer in shown.signed_by]


def _check_lines(shown: ShownCheck) -> list[str]:
    from shoal.cli.reports import size

    lines = [f"{each.what}: {each.reason}" for each in shown.damages]
    words = _("{size} read: {experts} experts, {tensors} other tensors, {damaged} damaged")
    told = words.format(
        size=size(shown.size_bytes), experts=shown.num_experts, tensors=shown.num_trunk_tensors,
        damaged=len(shown.damages),
    )  # fmt: skip
    signed = [_("signed by: {peer}").format(peer=peer) for peer in shown.signed_by]
    return [*lines, told, _("root:      {root}").format(root=shown.root), *signed]


def _proof(manifest: "Manifest", words: str) -> ShownProof:
    from shoal.experts.merkle_proof import prove_expert
    from shoal.protocol.errors import InvalidRequest
    from shoal.protocol.ids import ExpertId, LayerId

    layer, colon, expert = words.partition(":")
    if not (colon and layer.isascii() and layer.isdigit() and expert.isascii() and expert.isdigit()):
        raise InvalidRequest(f"{words!r} is no expert; write e.g. 3:17")
    proof = prove_expert(manifest, LayerId(int(layer)), ExpertId(int(expert)))
    return ShownProof(manifest.root.hex(), proof.layer, proof.expert, proof.digest.hex(), proof.encode().hex())
