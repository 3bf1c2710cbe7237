"""What went wrong, in OpenAI's envelope: `{"error": {"message", "type", "param", "code"}}`.

Where the tree of `protocol/errors.py` becomes HTTP statuses. A client sees what, why and whether to try again; it never
sees a stack, and nothing of a prompt is repeated.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from starlette.responses import JSONResponse

from shoal.protocol.errors import (
    Busy,
    CapacityError,
    ContextLengthExceeded,
    CoverageGap,
    DeadlineExceeded,
    IntegrityError,
    InvalidRequest,
    LocalError,
    NetworkError,
    NonFinite,
    RemoteError,
    ShoalError,
)

RETRY_AFTER_S = 5.0
"""For failures of the network, where nobody names a better time: a node that restarts is back within seconds."""


@dataclass(frozen=True, slots=True)
class ApiError(Exception):
    """A refusal or failure as the client will see it."""

    status: int
    code: str
    message: str
    param: str | None = None
    """The field at fault, e.g. `messages[0].content`."""
    retry_after_s: float | None = None

    def __str__(self) -> str:
        return self.message

    @property
    def type(self) -> str:
        """OpenAI's coarse kind."""
        return {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}.get(
            self.status, "invalid_request_error" if self.status < 500 else "server_error"
        )

    def envelope(self) -> dict[str, object]:
        """The body of the response, and of an error event in a stream."""
        error: dict[str, object] = {"message": self.message, "type": self.type, "param": self.param, "code": self.code}
        if self.retry_after_s is not None:
            error["retry_after_s"] = round(self.retry_after_s, 1)
        return {"error": error}

    def response(self, headers: Mapping[str, str] | None = None) -> JSONResponse:
        """The envelope as a response of its own."""
        retry = {} if self.retry_after_s is None else {"retry-after": str(max(1, math.ceil(self.retry_after_s)))}
        return JSONResponse(self.envelope(), self.status, {**retry, **(headers or {})})


def bad_request(message: str, param: str | None = None, code: str = "invalid_value") -> ApiError:
    """The caller's mistake: 400."""
    return ApiError(400, code, message, param)


def api_error(error: BaseException) -> ApiError | None:
    """The error as the client will see it; None for what nobody foresaw.

    Of a group, the first of ours: choices that fail together fail for one reason.
    """
    if isinstance(error, BaseExceptionGroup):
        found = (api_error(each) for each in error.exceptions)
        return next((each for each in found if each is not None), None)
    if isinstance(error, ApiError):
        return error
    return _of_shoal(error) if isinstance(error, ShoalError) else None


def _of_shoal(error: ShoalError) -> ApiError:
    message = str(error)
    match error:
        case ContextLengthExceeded():
            return bad_request(message, code="context_length_exceeded")
        case InvalidRequest():
            return bad_request(message)
        case CoverageGap():
            return ApiError(503, "coverage_gap", message, retry_after_s=error.retry_after_s)
        case Busy():
            return ApiError(503, "swarm_busy", message, retry_after_s=error.retry_after_s)
        case CapacityError():
            return ApiError(503, "swarm_unavailable", message, retry_after_s=RETRY_AFTER_S)
        case DeadlineExceeded():
            return ApiError(504, "deadline_exceeded", message, retry_after_s=RETRY_AFTER_S)
        case NetworkError():
            return ApiError(503, "swarm_unavailable", message, retry_after_s=RETRY_AFTER_S)
        case NonFinite() | IntegrityError():
            return ApiError(502, "integrity_error", message)
        case RemoteError():
            return ApiError(502, "peer_failed", message)
        case LocalError():
            return ApiError(500, "generation_failed", message)
    return ApiError(500, "internal_error", message)
