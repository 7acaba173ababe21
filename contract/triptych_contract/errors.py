"""The one tree of errors. Each class has one wire code, one HTTP status and the OpenAI error body.

    TriptychError
    ├── BadRequest 400 invalid_value          a member of the request has a bad value (`param` names it)
    │   ├── Unsupported 400 unsupported_parameter     a known member that is not served yet
    │   └── ContextLengthExceeded 400 context_length_exceeded
    ├── Unauthorized 401 invalid_api_key
    ├── Forbidden 403 forbidden
    ├── NotFound 404 not_found
    │   └── ModelNotFound 404 model_not_found
    ├── RequestTimeout 408 request_timeout     the client did not send its request in time
    ├── Moved 409 moved                        the caller's view of the role is out of date: try elsewhere
    ├── EpochConflict 409 epoch_conflict       a role assignment that is stale or contradicts its epoch
    ├── HandoverRefused 409 handover_refused   unknown or expired lease, foreign ticket, unequal layout
    ├── PayloadTooLarge 413 payload_too_large
    ├── UnsupportedMedia 415 unsupported_media_type
    ├── RateLimited 429 rate_limited
    ├── Internal 500 internal_error
    ├── UpstreamFailed 502 upstream_failed     every attempt on an instance failed
    ├── Overloaded 503 overloaded              a bounded queue is full
    │   ├── NotReady 503 not_ready             loading, draining or without a role
    │   └── NoInstance 503 no_instance         no live instance of a needed stage
    └── DeadlineExceeded 504 deadline_exceeded

Messages are written for clients: never an address, a path or the text of a library.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar

import msgspec


class ErrorDetail(msgspec.Struct, frozen=True):
    """The members of an OpenAI error."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorBody(msgspec.Struct, frozen=True):
    """The OpenAI error body: `{"error": {...}}`."""

    error: ErrorDetail


class TriptychError(Exception):
    """Base of all errors that may reach a caller.

    Args:
        message: One sentence that says what is wrong and what to do instead.
        param: The request member at fault, if there is one.
        retry_after_ms: When to try again, for the statuses that carry `Retry-After`.
    """

    code: ClassVar[str] = "internal_error"
    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    elsewhere: ClassVar[bool] = False
    """True if another instance may serve the same request."""

    def __init__(self, message: str, *, param: str | None = None, retry_after_ms: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after_ms = retry_after_ms

    def body(self) -> ErrorBody:
        """The error as OpenAI writes it."""
        return ErrorBody(ErrorDetail(self.message, self.type, self.param, self.code))

    def json(self) -> bytes:
        """The body as JSON."""
        return msgspec.json.encode(self.body())

    def headers(self) -> dict[str, str]:
        """`Retry-After` and its millisecond twin, where the error carries one."""
        if self.retry_after_ms is None:
            return {}
        seconds = max(1, -(-self.retry_after_ms // 1000))
        return {"retry-after": str(seconds), "retry-after-ms": str(self.retry_after_ms)}


class BadRequest(TriptychError):
    """A member of the request has a value that cannot be served."""

    code = "invalid_value"
    status = 400
    type = "invalid_request_error"


class Unsupported(BadRequest):
    """A member that is known but not served by this version."""

    code = "unsupported_parameter"


class ContextLengthExceeded(BadRequest):
    """Prompt and output do not fit the model's context."""

    code = "context_length_exceeded"


class Unauthorized(TriptychError):
    """No key, or a wrong one."""

    code = "invalid_api_key"
    status = 401
    type = "authentication_error"


class Forbidden(TriptychError):
    """A member or a path that this caller may not use."""

    code = "forbidden"
    status = 403
    type = "permission_error"


class NotFound(TriptychError):
    """No such path or object."""

    code = "not_found"
    status = 404
    type = "invalid_request_error"


class ModelNotFound(NotFound):
    """The model is not served here."""

    code = "model_not_found"


class RequestTimeout(TriptychError):
    """The client did not send its request in time."""

    code = "request_timeout"
    status = 408
    type = "invalid_request_error"


class Moved(TriptychError):
    """The instance no longer has the role or the epoch that the caller believes."""

    code = "moved"
    status = 409
    type = "conflict_error"
    elsewhere = True


class EpochConflict(TriptychError):
    """A role assignment with a stale epoch, or with another role for the present one."""

    code = "epoch_conflict"
    status = 409
    type = "conflict_error"


class HandoverRefused(TriptychError):
    """A ticket or lease that this instance cannot honour."""

    code = "handover_refused"
    status = 409
    type = "conflict_error"
    elsewhere = True


class PayloadTooLarge(TriptychError):
    """The body is larger than the limit."""

    code = "payload_too_large"
    status = 413
    type = "invalid_request_error"


class UnsupportedMedia(TriptychError):
    """A content type or image format that is not read."""

    code = "unsupported_media_type"
    status = 415
    type = "invalid_request_error"


class RateLimited(TriptychError):
    """The caller has used up its share."""

    code = "rate_limited"
    status = 429
    type = "rate_limit_error"


class Internal(TriptychError):
    """A defect of ours; the log has the cause."""


class UpstreamFailed(TriptychError):
    """Every attempt on an instance failed."""

    code = "upstream_failed"
    status = 502


class Overloaded(TriptychError):
    """A bounded queue is full."""

    code = "overloaded"
    status = 503
    type = "overloaded_error"
    elsewhere = True


class NotReady(Overloaded):
    """The instance loads, drains or has no role."""

    code = "not_ready"


class NoInstance(Overloaded):
    """No live instance holds a stage that the request needs."""

    code = "no_instance"
    elsewhere = False


class DeadlineExceeded(TriptychError):
    """The request's time is over."""

    code = "deadline_exceeded"
    status = 504
    type = "timeout_error"


class _PeerErrorDetail(msgspec.Struct):
    message: str
    param: str | None = None
    code: str | int | None = None


class _PeerErrorBody(msgspec.Struct):
    error: _PeerErrorDetail


def _tree(base: type[TriptychError]) -> list[type[TriptychError]]:
    return [base, *(found for child in base.__subclasses__() for found in _tree(child))]


BY_CODE: Mapping[str, type[TriptychError]] = MappingProxyType({cls.code: cls for cls in _tree(TriptychError)[1:]})
"""Every class of the tree but its base by its wire code."""


def from_code(code: str | None, message: str, *, param: str | None = None) -> TriptychError:
    """The error that a peer's answer stands for; an unknown code is an `Internal`."""
    return BY_CODE.get(code or "", Internal)(message, param=param)


def parse_error(body: bytes | memoryview, limit_bytes: int = 65536) -> TriptychError | None:
    """Read an OpenAI error body; None if it is none. Servers that write a number as the code are read too."""
    if len(body) > limit_bytes:
        return None
    try:
        error = msgspec.json.decode(body, type=_PeerErrorBody).error
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        return None
    code = error.code if isinstance(error.code, str) else None
    return from_code(code, error.message, param=error.param)
