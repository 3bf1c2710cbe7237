"""What a gateway can be told: one frozen object, made by the CLI or by a test."""

from dataclasses import dataclass
from ipaddress import ip_address
from typing import Annotated

from msgspec import Meta

from shoal.protocol.errors import InvalidRequest

DEFAULT_PORT = 8000
"""vLLM's: what most examples of OpenAI-compatible servers say."""

LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True, slots=True)
class ApiSettings:
    """Settings of one gateway.

    Raises:
        InvalidRequest: an address that others can reach, without a key; an empty key.
    """

    host: str = "127.0.0.1"
    """Address to listen on."""

    port: Annotated[int, Meta(ge=0, le=65535)] = DEFAULT_PORT
    """0: any free one."""

    api_key: str | None = None
    """The bearer token that requests must carry. None: none, and then only loopback may be listened on."""

    allowed_hosts: tuple[str, ...] = ()
    """Names that a request's Host may have besides this machine's loopback names and `host`."""

    cors_origins: tuple[str, ...] = ()
    """Origins whose pages may call, e.g. https://chat.example. A browser's Origin that is not named is refused."""

    max_running: Annotated[int, Meta(ge=1, le=256)] = 8
    """Sequences that generate at the same time, each choice of `n` one; the others wait in the gateway's line. The
    engine gets the same number, so that nobody waits, or is refused, in a second place."""

    max_queue: Annotated[int, Meta(ge=0, le=100_000)] = 64
    """Requests that may wait; one more is refused with 429 and Retry-After."""

    def __post_init__(self) -> None:
        if self.api_key is not None and not (self.api_key and self.api_key.isascii() and self.api_key.isprintable()):
            raise InvalidRequest("the API key is empty or not printable ASCII")
        if self.api_key is None and not self.is_loopback:
            raise InvalidRequest(
                f"--host {self.host} lets other machines in, so a key is needed: put one into a file and give"
                " --api-key-file FILE, or set SHOAL_API_KEY"
            )

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the gateway."""
        try:
            return self.host == "localhost" or ip_address(self.host).is_loopback
        except ValueError:
            return False
