"""A Hugging Face repository as a source: byte ranges of its files at one commit.

URLs, token, endpoint, offline mode and cache are huggingface_hub's (HF_ENDPOINT, HF_TOKEN, HF_HOME, HF_HUB_OFFLINE);
the bytes come through `http_files.py`, because that library downloads whole files. A revision is resolved to a commit
once, so that every range is of the same files. Knows repositories; knows no models.
"""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

import httpx2

from shoal.protocol.errors import InvalidRequest, ModelNotFound, SourceFailed
from shoal.protocol.net.http_files import HttpFiles

COMMIT = re.compile(r"[0-9a-f]{40}")
_REPOSITORY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,127}")

MAX_ANSWER_BYTES = 16 * 1024 * 1024
"""The hub's description of a repository: DeepSeek-V3's 163 files take 30 kB."""


@dataclass(frozen=True, slots=True)
class HubRepository:
    """A repository and which of its revisions: a branch, a tag, or a commit of 40 hex digits."""

    repository: str
    revision: str = "main"

    @classmethod
    def parse(cls, words: str) -> "HubRepository":
        """Read `deepseek-ai/DeepSeek-V3.1` or `deepseek-ai/DeepSeek-V3.1@revision`.

        Raises:
            InvalidRequest: not of that form.
        """
        repository, _, revision = words.partition("@")
        if not _REPOSITORY.fullmatch(repository) or not _REVISION.fullmatch(revision or "main"):
            raise InvalidRequest(f"{words!r} is no repository; write e.g. deepseek-ai/DeepSeek-V3.1@COMMIT")
        return cls(repository, revision or "main")


@dataclass(frozen=True, slots=True)
class HubAccess:
    """Where the hub is and how it lets us in."""

    endpoint: str
    token: str | None = field(repr=False)
    is_offline: bool
    cache_dir: Path


def hub_access() -> HubAccess:
    """What huggingface_hub says: the environment, or the token file in HF_HOME."""
    from huggingface_hub import constants, get_token

    return HubAccess(constants.ENDPOINT, get_token(), constants.HF_HUB_OFFLINE, Path(constants.HF_HUB_CACHE))


def cached_snapshot(repository: HubRepository, access: HubAccess) -> Path | None:
    """The folder where huggingface_hub keeps files of this revision, some or all; None: it keeps none."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(
        repository.repository, "config.json", cache_dir=access.cache_dir, revision=repository.revision
    )
    return Path(found).parent if isinstance(found, str) else None


async def open_hub(client: httpx2.AsyncClient, repository: HubRepository, access: HubAccess) -> HttpFiles:
    """The files of a revision, pinned to the commit that it is now.

    Raises:
        InvalidRequest: HF_HUB_OFFLINE forbids it. AccessRefused, ModelNotFound, SourceBusy, SourceFailed: the hub does.
    """
    from huggingface_hub import hf_hub_url

    if access.is_offline:
        raise InvalidRequest(f"HF_HUB_OFFLINE is set; {repository.repository} is not in {access.cache_dir}")
    headers = {"Authorization": f"Bearer {access.token}"} if access.token else {}
    commit = await _commit(client, repository, access, headers)

    def url_of(file: str) -> str:
        return hf_hub_url(repository.repository, file, revision=commit, endpoint=access.endpoint)

    return HttpFiles(client, f"hf:{repository.repository}@{commit}", url_of, headers)


async def _commit(
    client: httpx2.AsyncClient, repository: HubRepository, access: HubAccess, headers: dict[str, str]
) -> str:
    if COMMIT.fullmatch(repository.revision):
        return repository.revision
    name = f"hf:{repository.repository}@{repository.revision}"
    url = f"{access.endpoint}/api/models/{repository.repository}/revision/{quote(repository.revision, safe='')}"
    try:
        raw = await HttpFiles(client, name, lambda _: url, headers).read_file("revision", MAX_ANSWER_BYTES)
    except ModelNotFound:
        raise ModelNotFound(f"{name}: no such repository or revision at {access.endpoint}") from None
    try:
        commit = json.loads(raw)["sha"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise SourceFailed(name, "the hub does not say which commit this is") from error
    if not isinstance(commit, str) or not COMMIT.fullmatch(commit):
        raise SourceFailed(name, f"the hub calls the commit {commit!r:.60}")
    return commit
