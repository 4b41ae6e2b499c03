"""Everything the client raises, as one tree.

FusionError
├── ConfigurationError        the API's address or the key is missing or malformed
├── InvalidIdError            an id that cannot be one
├── ConnectionFailedError     no answer, after retries
├── ApiError                  the API refused: status, code, detail, errors, request_id
│   ├── AuthenticationError   401, 403: the key is not valid, or lacks a scope
│   ├── NotFoundError         404: no such object of this account, or a result that does not exist yet
│   ├── ConflictError         409: a used idempotency key, a dataset that is not ready, an upload that never came
│   ├── InvalidRequestError   other 4xx: `errors` names every bad field
│   ├── RateLimitedError      429, after retries
│   └── ServerError           5xx, after retries
├── UnexpectedAnswerError     an answer that does not have the documented shape
├── DeadlineError             the time that the caller allowed is over
├── DatasetFailedError        the dataset was read and is not valid: code, message, errors
└── TransferError             a file could not be sent to or fetched from storage
    ├── ChecksumError         the bytes that came are not the bytes of the manifest
    └── UnsafePathError       a manifest names a file outside the destination
"""

from collections.abc import Mapping, Sequence
from typing import Any


class FusionError(Exception):
    """Root of the tree."""


class ConfigurationError(FusionError):
    """The API's address or the key is missing or malformed."""


class InvalidIdError(FusionError, ValueError):
    """An id that cannot be one: empty, or with characters that no id has."""


class ConnectionFailedError(FusionError):
    """No answer from the API, after retries."""


class ApiError(FusionError):
    """An answer that is not 2xx. `errors` holds {pointer, detail} of each bad field."""

    def __init__(
        self, status: int, code: str, detail: str, errors: Sequence[Mapping[str, Any]] = (), request_id: str = ""
    ) -> None:
        super().__init__(f"{detail} ({status} {code})")
        self.status = status
        self.code = code
        self.detail = detail
        self.errors = tuple(errors)
        self.request_id = request_id


class AuthenticationError(ApiError):
    """The key is not valid, was revoked, or lacks a scope."""


class NotFoundError(ApiError):
    """No such object of this account, or a result that does not exist yet."""


class ConflictError(ApiError):
    """The request does not fit the present state, or its idempotency key was used for another."""


class InvalidRequestError(ApiError):
    """The request itself is wrong; `errors` names every bad field."""


class RateLimitedError(ApiError):
    """Too many requests, still so after retries."""


class ServerError(ApiError):
    """Something broke on the other side, still so after retries."""


class UnexpectedAnswerError(FusionError):
    """An answer that does not have the documented shape: another server, a proxy, or another version."""


class DeadlineError(FusionError):
    """The time that the caller allowed is over; what was waited for may still come."""


class DatasetFailedError(FusionError):
    """The dataset's files were read and are not valid. `errors` holds the first of what is wrong.

    Each is {file, line, rule, detail, fix} with column, offset and pointer where they are known; the report has more.
    """

    def __init__(self, code: str, message: str, errors: Sequence[Mapping[str, Any]] = ()) -> None:
        super().__init__(f"{message} ({code})")
        self.code = code
        self.errors = tuple(errors)


class TransferError(FusionError):
    """A file could not be sent to or fetched from storage."""


class ChecksumError(TransferError):
    """The bytes that came are not the bytes that the manifest promises."""


class UnsafePathError(TransferError):
    """A manifest names a file outside the destination folder."""


_BY_STATUS: dict[int, type[ApiError]] = {
    401: AuthenticationError,
    403: AuthenticationError,
    404: NotFoundError,
    409: ConflictError,
    429: RateLimitedError,
}


def api_error_type(status: int) -> type[ApiError]:
    """The class for an HTTP status."""
    return _BY_STATUS.get(status, ServerError if status >= 500 else InvalidRequestError)
