"""A request's body: read within a bound and a time, then decoded into one of the schemas."""

import asyncio
from typing import TypeVar

import msgspec
from starlette.requests import ClientDisconnect, Request

from shoal.client.api.errors import ApiError, bad_request

MAX_BODY_BYTES = 10 * 10**6
"""Many times the longest prompt: 160k tokens of DeepSeek's are under 1 MB."""

BODY_TIMEOUT_S = 30.0
"""For the whole body: 10 MB at 3 Mbit/s. A sender that stalls must not hold memory."""

Schema = TypeVar("Schema", bound=msgspec.Struct)


async def read_json(request: Request, schema: type[Schema]) -> Schema:
    """The body as an object of a schema; fields that the schema does not know are ignored.

    Raises:
        ApiError: 400 not JSON, or a field of the wrong type or range (it is named); 408 too slow; 413 too large.
        ClientDisconnect: the sender is gone.
    """
    body = await _read(request)
    try:
        return msgspec.json.decode(body, type=schema)
    except msgspec.ValidationError as error:
        reason, _, path = str(error).partition(" - at ")
        param = path.strip("`").removeprefix("$").removeprefix(".") or None
        raise bad_request(f"{param or 'the body'}: {reason}", param, "invalid_type") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise bad_request(f"the body is not JSON: {error}", code="invalid_json") from None
    except RecursionError:
        raise bad_request("the body is nested too deeply", code="invalid_json") from None


async def _read(request: Request) -> bytes:
    declared = request.headers.get("content-length", "0")
    if declared.isdigit() and int(declared) > MAX_BODY_BYTES:
        raise _too_large()
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            async for chunk in request.stream():
                body += chunk
                if len(body) > MAX_BODY_BYTES:
                    raise _too_large()
    except TimeoutError:
        raise ApiError(408, "request_timeout", f"the body did not arrive within {BODY_TIMEOUT_S:.0f} s") from None
    return bytes(body)


def _too_large() -> ApiError:
    return ApiError(413, "request_too_large", f"the body is larger than {MAX_BODY_BYTES} bytes")


__all__ = ["ClientDisconnect", "read_json"]
