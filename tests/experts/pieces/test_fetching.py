"""Pieces from a local hub, a mirror and a folder: what arrives, what it costs, and what happens when a source fails."""

import asyncio
import os
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx2
import pytest

from shoal.experts.family import model_spec, read_config
from shoal.experts.manifest import Manifest
from shoal.experts.manifest_maker import Making, make_manifest
from shoal.experts.pieces.arriving import Arrival
from shoal.experts.pieces.disk import FolderDisk
from shoal.experts.pieces.encoding import decode_piece
from shoal.experts.pieces.fetching import Fetched, FetchSettings, fetch_pieces
from shoal.experts.pieces.pieces import Piece, all_experts, expert_pieces, trunk_pieces
from shoal.experts.pieces.ranges import CheckpointSource
from shoal.experts.pieces.sources import FolderReader, OnBytes, PieceSource, RangeReader
from shoal.experts.pieces.store import PieceStore, StorePolicy
from shoal.protocol.errors import (
    AccessRefused,
    CheckpointError,
    DiskFull,
    InvalidRequest,
    ModelNotFound,
    ShoalError,
    SourceBusy,
    SourceFailed,
    SourceLied,
)
from shoal.protocol.net.http_files import HttpFiles, HttpPatience, http_client, mirror, retry_after_s
from shoal.protocol.net.hub import HubAccess, HubRepository, cached_snapshot, open_hub
from shoal.simulations.local_hub import COMMIT, REPOSITORY, Fault, LocalHub, local_hub
from tests.checkpoints import SHAPES, CheckpointShape, write_checkpoint

PATIENCE = HttpPatience(connect_s=60, stall_s=60)
SETTINGS = FetchSettings(pause_s=0.0)
SHAPE = CheckpointShape(hidden=256, inter=512, num_layers=2, max_shard_size="4MB")
"""Experts of 1.6 MB, so that headers and index weigh as little beside them as in a real model."""


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    directory = tmp_path_factory.mktemp("hub") / "model"
    write_checkpoint(directory, SHAPE, seed=4)
    yield directory
    shutil.rmtree(directory)


@pytest.fixture(scope="module")
def manifest(model: Path) -> Manifest:
    return make_manifest(model, making=Making(is_probed=False))


def source_of(reader: RangeReader, manifest: Manifest, model: Path) -> CheckpointSource:
    return CheckpointSource(reader, manifest, model_spec(read_config(model)))


def access_to(hub: LocalHub, token: str | None = None) -> HubAccess:
    return HubAccess(hub.endpoint, token, is_offline=False, cache_dir=Path("/nonexistent"))


@asynccontextmanager
async def hub_source(model: Path, manifest: Manifest) -> AsyncIterator[tuple[LocalHub, CheckpointSource]]:
    async with local_hub(model) as hub, http_client(PATIENCE) as client:
        files = await open_hub(client, HubRepository.parse(REPOSITORY), access_to(hub))
        yield hub, source_of(files, manifest, model)


def experts_of(manifest: Manifest) -> list[Piece]:
    return list(expert_pieces(manifest, all_experts(manifest)))


def store_at(path: Path, cap_bytes: int | None = None) -> PieceStore:
    return PieceStore(FolderDisk(path), StorePolicy(cap_bytes=cap_bytes))


def assert_whole(store: PieceStore, pieces: list[Piece]) -> None:
    assert {piece.digest for piece in pieces} == {piece.digest for piece in store.pieces()}
    assert store.verify([piece.digest for piece in pieces]) == []


# ------------------------------------------------------------------------------------------------ what arrives


def test_experts_from_the_hub_cost_at_most_a_hundredth_more_than_their_size(
    model: Path, manifest: Manifest, tmp_path: Path
) -> None:
    pieces, store = experts_of(manifest)[1:7], store_at(tmp_path)

    async def fetch() -> tuple[Fetched, int, int]:
        async with hub_source(model, manifest) as (hub, source):
            fetched = await fetch_pieces(pieces, [source], store, SETTINGS)
            return fetched, hub.body_bytes, source.bytes_read

    fetched, sent, read = asyncio.run(fetch())
    assert_whole(store, pieces)
    size = sum(tensor.data.nbytes for piece in pieces for tensor in decode_piece(store.read(piece.digest) or b"", "x"))
    assert read == sent, "every byte of a body is counted, those of headers and index too"
    assert size <= sent <= 1.01 * size
    assert fetched.num_pieces == 6


def test_the_trunk_comes_from_the_hub_too(model: Path, manifest: Manifest, tmp_path: Path) -> None:
    pieces: list[Piece] = list(trunk_pieces(manifest))

    async def fetch() -> None:
        async with hub_source(model, manifest) as (_, source):
            await fetch_pieces(pieces, [source], store_at(tmp_path), SETTINGS)

    asyncio.run(fetch())
    assert_whole(store_at(tmp_path), pieces)


@pytest.mark.parametrize("shape", ["plain", "ragged_fp8_mtp_sharded"])
def test_every_layout_comes_whole_from_a_folder(shape: str, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "model", SHAPES[shape], seed=5)
    manifest = make_manifest(tmp_path / "model", making=Making(is_probed=False))
    pieces, store = [*experts_of(manifest), *trunk_pieces(manifest)], store_at(tmp_path / "store")
    source = source_of(FolderReader(tmp_path / "model"), manifest, tmp_path / "model")
    asyncio.run(fetch_pieces(pieces, [source], store, SETTINGS))
    assert_whole(store, pieces)


def test_a_mirror_is_any_server_with_ranges(model: Path, manifest: Manifest, tmp_path: Path) -> None:
    async def fetch() -> None:
        async with local_hub(model) as hub, http_client(PATIENCE) as client:
            files = mirror(client, f"{hub.endpoint}/{REPOSITORY}/resolve/{COMMIT}/")
            await fetch_pieces(experts_of(manifest), [source_of(files, manifest, model)], store_at(tmp_path), SETTINGS)

    asyncio.run(fetch())
    assert_whole(store_at(tmp_path), experts_of(manifest))


def test_what_is_there_is_not_fetched_again_and_sizes_are_told_beforehand(
    model: Path, manifest: Manifest, tmp_path: Path
) -> None:
    pieces, store = experts_of(manifest), store_at(tmp_path)

    async def fetch() -> tuple[int, int, int]:
        async with hub_source(model, manifest) as (hub, source):
            told = await source.size(pieces[0])
            await fetch_pieces(pieces[:3], [source], store, SETTINGS)
            before = hub.body_bytes
            fetched = await fetch_pieces([*pieces[:3], *pieces[:3]], [source], store, SETTINGS)
            assert fetched.num_pieces == 0
            return told, before, hub.body_bytes

    told, before, after = asyncio.run(fetch())
    assert after == before
    assert told == sum(tensor.data.nbytes for tensor in decode_piece(store.read(pieces[0].digest) or b"", "x"))


def test_progress_ends_at_the_bytes_that_came(model: Path, manifest: Manifest, tmp_path: Path) -> None:
    heard: list[int] = []

    async def fetch() -> int:
        async with hub_source(model, manifest) as (hub, source):
            hub.faults.append(Fault.FLIPPED_BIT)
            other = source_of(FolderReader(model), manifest, model)
            pieces = experts_of(manifest)
            await fetch_pieces(pieces, [source, other], store_at(tmp_path), SETTINGS, heard.append)
            return sum([await other.size(piece) for piece in pieces])

    total = asyncio.run(fetch())
    assert heard[-1] == total


# ------------------------------------------------------------------------------------------------ what fails once

ONCE = [
    Fault.BROKEN, Fault.TRUNCATE, Fault.OTHER_RANGE, Fault.TOO_LONG, Fault.NO_RANGES, Fault.CLOSE, Fault.RATE_LIMIT,
]  # fmt: skip


@pytest.mark.parametrize("fault", ONCE, ids=lambda fault: fault.name)
def test_a_fault_that_passes_is_survived_by_the_same_source(
    fault: Fault, model: Path, manifest: Manifest, tmp_path: Path
) -> None:
    async def fetch() -> None:
        async with hub_source(model, manifest) as (hub, source):
            await source.size(experts_of(manifest)[0])
            hub.faults.extend([fault, fault])
            await fetch_pieces(experts_of(manifest), [source], store_at(tmp_path), SETTINGS)
            assert not hub.faults

    asyncio.run(fetch())
    assert_whole(store_at(tmp_path), experts_of(manifest))


class Stalling(httpx2.AsyncBaseTransport):
    """A server of 100 bytes that sends nothing more after 40, `times` times; what the client's clock makes of it."""

    def __init__(self, times: int) -> None:
        self.times = times
        self.ranges: list[str] = []

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        self.ranges.append(request.headers["Range"])
        first, last = map(int, request.headers["Range"].removeprefix("bytes=").split("-"))
        self.times -= 1

        async def body(is_stalled: bool = self.times >= 0) -> AsyncIterator[bytes]:
            yield bytes(range(first, min(last + 1, first + 40) if is_stalled else last + 1))
            if is_stalled:
                raise httpx2.ReadTimeout("nothing came")

        return httpx2.Response(206, headers={"Content-Range": f"bytes {first}-{last}/100"}, content=body())


def test_a_stalled_body_is_asked_for_again_from_where_it_stopped() -> None:
    transport = Stalling(times=1)

    async def read() -> tuple[bytearray, int]:
        async with http_client(PATIENCE, transport) as client:
            files = HttpFiles(client, "stalling", lambda file: f"http://x/{file}")
            return await files.read_range("a", 10, 80, lambda _: None)

    assert asyncio.run(read()) == (bytearray(range(10, 90)), 100)
    assert transport.ranges == ["bytes=10-89", "bytes=50-89"]


def test_a_source_that_stalls_before_the_first_byte_is_said_to() -> None:
    class Silent(httpx2.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
            raise httpx2.ReadTimeout("nothing came")

    async def read() -> None:
        async with http_client(PATIENCE, Silent()) as client:
            await HttpFiles(client, "silent", lambda file: f"http://x/{file}").read_range("a", 0, 9, lambda _: None)

    with pytest.raises(SourceFailed, match="silent: a: stalled"):
        asyncio.run(read())


def test_a_broken_body_is_resumed_where_it_broke(model: Path, manifest: Manifest, tmp_path: Path) -> None:
    pieces = experts_of(manifest)

    async def fetch() -> tuple[int, int]:
        async with hub_source(model, manifest) as (hub, source):
            size = await source.size(pieces[0])
            before = hub.body_bytes
            hub.faults.extend([Fault.TRUNCATE] * 3)
            await fetch_pieces(pieces[:1], [source], store_at(tmp_path), FetchSettings(max_failures=1))
            return size, hub.body_bytes - before

    size, sent = asyncio.run(fetch())
    assert sent == size, "not a byte came twice"


# ------------------------------------------------------------------------------------------------ what fails always

ALWAYS: list[tuple[Fault, type[ShoalError], str]] = [
    (Fault.NOT_FOUND, ModelNotFound, "has no model-0"),
    (Fault.EXPIRED_TOKEN, AccessRefused, "HTTP 401"),
    (Fault.RATE_LIMIT, SourceBusy, "retry after 0 s"),
    (Fault.BROKEN, SourceFailed, "HTTP 500"),
    (Fault.REDIRECT_LOOP, SourceFailed, "redirected more than 5 times"),
    (Fault.OTHER_RANGE, SourceFailed, "it sends 'bytes"),
    (Fault.TOO_LONG, SourceFailed, "sends more than"),
    (Fault.NO_RANGES, SourceFailed, "no ranges"),
    (Fault.CLOSE, SourceFailed, "RemoteProtocolError"),
    (Fault.FLIPPED_BIT, SourceLied, "not the manifest's; it is not asked again"),
]


@pytest.mark.parametrize(("fault", "error", "words"), ALWAYS, ids=lambda value: getattr(value, "name", ""))
def test_a_source_that_goes_on_failing_is_a_typed_error_and_nothing_wrong_is_kept(
    fault: Fault, error: type[ShoalError], words: str, model: Path, manifest: Manifest, tmp_path: Path
) -> None:
    pieces = experts_of(manifest)

    async def fetch() -> None:
        async with hub_source(model, manifest) as (hub, source):
            for piece in pieces:
                await source.size(piece)  # headers are read while all is well
            hub.faults_always = fault
            await fetch_pieces(pieces, [source], store_at(tmp_path), SETTINGS)

    with pytest.raises(error, match=words):
        asyncio.run(fetch())
    assert store_at(tmp_path).pieces() == []


@pytest.mark.parametrize("fault", [each for each in Fault if each is not Fault.STALL], ids=lambda fault: fault.name)
def test_what_one_source_cannot_give_comes_from_another(
    fault: Fault, model: Path, manifest: Manifest, tmp_path: Path
) -> None:
    pieces = experts_of(manifest)

    async def fetch() -> Fetched:
        async with hub_source(model, manifest) as (hub, bad), hub_source(model, manifest) as (_, good):
            for piece in pieces:
                await bad.size(piece)
            hub.faults_always = fault
            return await fetch_pieces(pieces, [bad, good], store_at(tmp_path), SETTINGS)

    bad, good = asyncio.run(fetch()).sources
    assert_whole(store_at(tmp_path), pieces)
    assert bad.num_pieces + good.num_pieces == 8
    assert bad.num_pieces == 0 or fault is Fault.TRUNCATE, "halves add up; nothing else does"
    if fault is Fault.FLIPPED_BIT:
        assert isinstance(bad.dropped, SourceLied)


def test_headers_that_lie_drop_the_source(model: Path, manifest: Manifest, tmp_path: Path) -> None:
    async def fetch() -> None:
        async with hub_source(model, manifest) as (hub, source):
            hub.faults_always = Fault.FLIPPED_BIT
            await fetch_pieces(experts_of(manifest), [source], store_at(tmp_path), SETTINGS)

    with pytest.raises((CheckpointError, SourceLied, ModelNotFound)):
        asyncio.run(fetch())
    assert store_at(tmp_path).pieces() == []


def test_another_model_s_files_are_refused(model: Path, manifest: Manifest, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "other", SHAPE, seed=99)
    source = source_of(FolderReader(tmp_path / "other"), manifest, model)
    with pytest.raises(SourceLied, match="other gave bytes for expert"):
        asyncio.run(fetch_pieces(experts_of(manifest), [source], store_at(tmp_path / "store"), SETTINGS))


def test_a_full_store_ends_the_fetch_and_keeps_what_came(model: Path, manifest: Manifest, tmp_path: Path) -> None:
    pinned = frozenset(piece.digest for piece in experts_of(manifest))
    store = PieceStore(FolderDisk(tmp_path), StorePolicy(cap_bytes=4_000_000, pinned=lambda: pinned))
    source = source_of(FolderReader(model), manifest, model)
    with pytest.raises(DiskFull):
        asyncio.run(fetch_pieces(experts_of(manifest), [source], store, SETTINGS))
    assert len(store.pieces()) == 2


def test_without_a_source_nothing_is_pretended(manifest: Manifest, tmp_path: Path) -> None:
    with pytest.raises(SourceFailed, match="none was given"):
        asyncio.run(fetch_pieces(experts_of(manifest), [], store_at(tmp_path), SETTINGS))


def test_a_fetch_that_is_cancelled_goes_on_where_it_was(model: Path, manifest: Manifest, tmp_path: Path) -> None:
    class Interrupted(PieceSource):
        def __init__(self, source: PieceSource) -> None:
            self.source, self.given, self.is_stuck = source, 0, asyncio.Event()

        @property
        def name(self) -> str:
            return "interrupted"

        @property
        def bytes_read(self) -> int:
            return self.source.bytes_read

        async def size(self, piece: Piece) -> int:
            return await self.source.size(piece)

        async def fetch(self, piece: Piece, on_bytes: OnBytes) -> bytearray | Arrival:
            if self.given == 3:
                self.is_stuck.set()
                await asyncio.Event().wait()
            self.given += 1
            return await self.source.fetch(piece, on_bytes)

    async def fetch() -> int:
        folder = source_of(FolderReader(model), manifest, model)
        store = store_at(tmp_path)
        one = FetchSettings(streams_per_source=1)
        interrupted = Interrupted(folder)
        task = asyncio.create_task(fetch_pieces(experts_of(manifest), [interrupted], store, one))
        await interrupted.is_stuck.wait()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return (await fetch_pieces(experts_of(manifest), [folder], store)).num_pieces

    assert asyncio.run(fetch()) == 5
    assert_whole(store_at(tmp_path), experts_of(manifest))


# ------------------------------------------------------------------------------------------------ the hub's ways


def test_a_token_goes_to_the_hub_and_never_to_where_it_redirects(
    model: Path, manifest: Manifest, tmp_path: Path
) -> None:
    async def fetch() -> int:
        async with local_hub(model, token="hf_secret") as hub, http_client(PATIENCE) as client:
            with pytest.raises(AccessRefused) as caught:
                await open_hub(client, HubRepository.parse(REPOSITORY), access_to(hub, "hf_expired"))
            assert "hf_" not in str(caught.value)
            files = await open_hub(client, HubRepository.parse(REPOSITORY), access_to(hub, "hf_secret"))
            await fetch_pieces(experts_of(manifest), [source_of(files, manifest, model)], store_at(tmp_path), SETTINGS)
            return hub.tokens_at_content_network

    assert asyncio.run(fetch()) == 0
    assert_whole(store_at(tmp_path), experts_of(manifest))


def test_a_revision_is_pinned_to_its_commit(model: Path) -> None:
    async def names() -> tuple[str, str]:
        async with local_hub(model) as hub, http_client(PATIENCE) as client:
            by_branch = await open_hub(client, HubRepository.parse(REPOSITORY), access_to(hub))
            requests = hub.num_requests
            by_commit = await open_hub(client, HubRepository(REPOSITORY, COMMIT), access_to(hub))
            assert hub.num_requests == requests, "a commit needs no resolving"
            return by_branch.name, by_commit.name

    assert asyncio.run(names()) == (f"hf:{REPOSITORY}@{COMMIT}",) * 2


def test_a_repository_or_revision_that_is_not_there_is_said_so(model: Path) -> None:
    async def open_wrong() -> None:
        async with local_hub(model) as hub, http_client(PATIENCE) as client:
            await open_hub(client, HubRepository(REPOSITORY, "v9"), access_to(hub))

    with pytest.raises(ModelNotFound, match="no such repository or revision"):
        asyncio.run(open_wrong())


@pytest.mark.parametrize("words", ["", "x", "a/b/c", "a/b@", "../x", "a/..b@../../c d", "a/b@" + "x" * 200, "-/b"])
def test_what_is_no_repository_is_refused(words: str) -> None:
    if words == "a/b@":
        assert HubRepository.parse(words).revision == "main"
        return
    with pytest.raises(InvalidRequest, match="no repository"):
        HubRepository.parse(words)


def test_offline_nothing_is_asked_for(tmp_path: Path) -> None:
    access = HubAccess("http://127.0.0.1:9", "hf_x", is_offline=True, cache_dir=tmp_path)

    async def open_offline() -> None:
        async with http_client(PATIENCE) as client:
            await open_hub(client, HubRepository(REPOSITORY), access)

    with pytest.raises(InvalidRequest, match="HF_HUB_OFFLINE is set"):
        asyncio.run(open_offline())
    assert "hf_x" not in repr(access)
    assert cached_snapshot(HubRepository(REPOSITORY), access) is None


def test_what_huggingface_hub_has_downloaded_is_found(model: Path, tmp_path: Path) -> None:
    repository = tmp_path / f"models--{REPOSITORY.replace('/', '--')}"
    snapshot = repository / "snapshots" / COMMIT
    snapshot.parent.mkdir(parents=True)
    snapshot.symlink_to(model)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    access = HubAccess("http://127.0.0.1:9", None, is_offline=True, cache_dir=tmp_path)
    for revision in ("main", COMMIT):
        assert cached_snapshot(HubRepository(REPOSITORY, revision), access) == snapshot


@pytest.mark.parametrize(
    ("words", "seconds"),
    [("7", 7.0), ("99999", 3600.0), (None, 30.0), ("soon", 30.0), ("Sun, 22 Nov 2026 06:00:09 GMT", 9.0),
     ("Sun, 22 Nov 2026 05:00:00 GMT", 0.0), ("-3", 30.0)],
)  # fmt: skip
def test_the_pause_that_a_server_asks_for_is_read_and_bounded(words: str | None, seconds: float) -> None:
    assert retry_after_s(words, "Sun, 22 Nov 2026 06:00:00 GMT") == seconds


@pytest.mark.parametrize("url", ["", "ftp://x/y", "http://", "http://x/?a", "nothing"])
def test_what_is_no_mirror_is_refused(url: str) -> None:
    with pytest.raises(InvalidRequest, match="no URL of a mirror"):
        asyncio.run(_mirror_name(url))


def test_a_password_in_a_mirror_s_url_stays_out_of_its_name() -> None:
    assert asyncio.run(_mirror_name("http://me:secret@10.0.0.5/m")) == "http://10.0.0.5/m"


async def _mirror_name(url: str) -> str:
    async with http_client(PATIENCE) as client:
        return mirror(client, url).name


def test_a_file_larger_than_expected_is_not_read_to_its_end() -> None:
    class Endless(httpx2.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
            async def body() -> AsyncIterator[bytes]:
                while True:
                    yield bytes(1000)

            return httpx2.Response(200, content=body())

    async def read() -> int:
        async with http_client(PATIENCE, Endless()) as client:
            files = HttpFiles(client, "endless", lambda file: f"http://x/{file}")
            with pytest.raises(SourceFailed, match="more than 5000 bytes"):
                await files.read_file("a", 5000)
            return files.bytes_read

    assert asyncio.run(read()) == 6000
