"""Byte ranges of files on an HTTP server: a mirror of a model, or (`hub.py`) a Hugging Face repository.

Resumes where a body broke off, refuses what it did not ask for, counts every byte of a body. Redirects are followed,
and a token stays with the host it is for (httpx2 takes it off at another origin). Nothing here is trusted: whoever asks
verifies the bytes. Knows HTTP; knows no models.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from urllib.parse import quote, urlsplit

import httpx2

from shoal.protocol.errors import AccessRefused, InvalidRequest, ModelNotFound, ShoalError, SourceBusy, SourceFailed

MAX_REDIRECTS = 5
"""The hub takes two: to the canonical name of a repository, and to its content network."""

MAX_RESUMES = 5
"""Of one range, each after at least a byte more."""

MIN_BYTES_PER_S = 4096
"""A source that is slower for a whole range is given up: an expert would take three hours."""

DEFAULT_RETRY_AFTER_S = 30.0
"""When a server says 429 or 503 and no time, or none that we read."""

MAX_RETRY_AFTER_S = 3600.0

USER_AGENT = "shoal"

_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})")


@dataclass(frozen=True, slots=True)
class HttpPatience:
    """How long a server may take."""

    connect_s: float = 10.0
    stall_s: float = 30.0
    """Between two parts of a body, or for the head of an answer."""


DEFAULT_PATIENCE = HttpPatience()


@asynccontextmanager
async def http_client(
    patience: HttpPatience = DEFAULT_PATIENCE, transport: httpx2.AsyncBaseTransport | None = None
) -> AsyncIterator[httpx2.AsyncClient]:
    """A client for all sources of a fetch; honours HTTP_PROXY and SSL_CERT_FILE. `transport`: for tests."""
    timeout = httpx2.Timeout(patience.stall_s, connect=patience.connect_s)
    headers = {"User-Agent": USER_AGENT, "Accept-Encoding": "identity"}
    async with httpx2.AsyncClient(
        timeout=timeout, headers=headers, follow_redirects=True, max_redirects=MAX_REDIRECTS, transport=transport
    ) as client:
        yield client


class HttpFiles:
    """Files below one URL."""

    def __init__(
        self,
        client: httpx2.AsyncClient,
        name: str,
        url_of: Callable[[str], str],
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """`url_of`: the URL of a file. `headers`: of every request, such as a token; never part of an error."""
        self._client = client
        self._name = name
        self._url_of = url_of
        self._headers = dict(headers or {})
        self._bytes_read = 0

    @property
    def name(self) -> str:
        """What errors call it."""
        return self._name

    @property
    def bytes_read(self) -> int:
        """Bytes of bodies so far, of refused and broken ones too."""
        return self._bytes_read

    async def read_file(self, file: str, max_bytes: int) -> bytes:
        """A whole file of at most `max_bytes`.

        Raises:
            As `read_range`; SourceFailed also if it is larger.
        """
        body = bytearray()
        async with self._answer(file, {}) as response:
            if response.status_code != httpx2.codes.OK:
                raise self._refusal(response, file)
            async for part in self._parts(response, max_bytes, file):
                body += part
        stated = response.headers.get("Content-Length")
        if stated is not None and stated != str(len(body)):
            raise SourceFailed(self.name, f"{file} broke off after {len(body)} of {stated:.20} bytes")
        return bytes(body)

    async def read_range(
        self, file: str, begin: int, size: int, on_bytes: Callable[[int], None]
    ) -> tuple[bytearray, int]:
        """`size` > 0 bytes from `begin`, and the length of the whole file. Broken bodies are resumed.

        Raises:
            ModelNotFound: there is no such file. AccessRefused: 401 or 403. SourceBusy: 429, or 503 with a time.
            SourceFailed: everything else that is not these bytes.
        """
        body, file_bytes, failure = bytearray(), 0, SourceFailed(self.name, f"{file} sends no bytes")
        try:
            async with asyncio.timeout(size / MIN_BYTES_PER_S + 4 * self._stall_s):
                for _ in range(MAX_RESUMES + 1):
                    before = len(body)
                    try:
                        file_bytes = await self._continue(file, begin, size, body, on_bytes)
                    except SourceFailed as error:
                        failure = error
                    if len(body) == size:
                        return body, file_bytes
                    if len(body) == before:
                        break
        except TimeoutError:
            failure = SourceFailed(self.name, f"{file} comes slower than {MIN_BYTES_PER_S} bytes/s")
        raise failure

    @property
    def _stall_s(self) -> float:
        return self._client.timeout.read or DEFAULT_PATIENCE.stall_s

    async def _continue(
        self, file: str, begin: int, size: int, body: bytearray, on_bytes: Callable[[int], None]
    ) -> int:
        """Ask for what is missing and append it; returns the file's length."""
        start, end = begin + len(body), begin + size
        async with self._answer(file, {"Range": f"bytes={start}-{end - 1}"}) as response:
            file_bytes = self._check_range(response, file, start, end)
            async for part in self._parts(response, end - start, file):
                body += part
                on_bytes(len(part))
        if len(body) < size:
            raise SourceFailed(self.name, f"{file} broke off after {len(body)} of {size} bytes")
        return file_bytes

    def _check_range(self, response: httpx2.Response, file: str, start: int, end: int) -> int:
        """The file's length, if this answers the range start..end."""
        if response.status_code == httpx2.codes.OK:
            raise SourceFailed(self.name, f"{file}: the server does not give parts of files (no ranges)")
        if response.status_code != httpx2.codes.PARTIAL_CONTENT:
            raise self._refusal(response, file)
        stated = response.headers.get("Content-Range", "")
        match = _CONTENT_RANGE.fullmatch(stated)
        if match is None or (int(match[1]), int(match[2]) + 1) != (start, end) or int(match[3]) < end:
            raise SourceFailed(self.name, f"{file}: bytes {start}-{end - 1} were asked for, it sends {stated[:60]!r}")
        return int(match[3])

    async def _parts(self, response: httpx2.Response, most_bytes: int, file: str) -> AsyncIterator[bytes]:
        """The body, at most so many bytes of it; a server that sends more is cut off."""
        left = most_bytes
        async for part in response.aiter_raw():
            self._bytes_read += len(part)
            if len(part) > left:
                raise SourceFailed(self.name, f"{file} sends more than {most_bytes} bytes")
            left -= len(part)
            yield part

    @asynccontextmanager
    async def _answer(self, file: str, headers: Mapping[str, str]) -> AsyncIterator[httpx2.Response]:
        """One request; what goes wrong on the way becomes a SourceFailed."""
        try:
            async with self._client.stream("GET", self._url_of(file), headers={**self._headers, **headers}) as response:
                yield response
        except httpx2.TooManyRedirects as error:
            raise SourceFailed(self.name, f"{file}: redirected more than {MAX_REDIRECTS} times") from error
        except httpx2.TimeoutException as error:
            raise SourceFailed(self.name, f"{file}: stalled ({type(error).__name__})") from error
        except httpx2.HTTPError as error:
            raise SourceFailed(self.name, f"{file}: {type(error).__name__} {error!s:.200}".rstrip()) from error

    def _refusal(self, response: httpx2.Response, file: str) -> ShoalError:
        status = response.status_code
        if status in (401, 403):
            return AccessRefused(self.name, status)
        if status in (404, 410):
            return ModelNotFound(f"{self.name} has no {file}")
        if status == 429 or (status == 503 and "Retry-After" in response.headers):
            return SourceBusy(
                self.name, retry_after_s(response.headers.get("Retry-After"), response.headers.get("Date"))
            )
        return SourceFailed(self.name, f"{file}: HTTP {status}")


def retry_after_s(words: str | None, now: str | None) -> float:
    """What a Retry-After header says, in seconds; a date counts from the server's own Date. Bounded."""
    if words is None:
        return DEFAULT_RETRY_AFTER_S
    if re.fullmatch(r"\d{1,9}", words):
        return min(float(words), MAX_RETRY_AFTER_S)
    try:
        seconds = (parsedate_to_datetime(words) - parsedate_to_datetime(now or "")).total_seconds()
    except (ValueError, TypeError):
        return DEFAULT_RETRY_AFTER_S
    return min(max(seconds, 0.0), MAX_RETRY_AFTER_S)


def mirror(client: httpx2.AsyncClient, url: str) -> HttpFiles:
    """The files below a plain URL, such as `http://10.0.0.5:8000/DeepSeek-V3.1`. A user and password in it stay out of
    errors.

    Raises:
        InvalidRequest: no such URL.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise InvalidRequest(f"{url!r} is no URL of a mirror; write e.g. http://10.0.0.5:8000/DeepSeek-V3.1")
    name = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
    base = url.rstrip("/") + "/"
    return HttpFiles(client, name, lambda file: base + quote(file))
