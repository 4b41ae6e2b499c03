"""What the API answers about uploads and datasets, as typed values."""

from datetime import datetime
from typing import Any

import msgspec

from fusion_client.models import Failure


class Dataset(msgspec.Struct, frozen=True, kw_only=True):
    """An immutable, versioned set of rows. `status` is validating, ready or failed."""

    id: str
    name: str
    version: str
    shard_count: int
    bytes: int
    rows: int = 0
    skipped_rows: int = 0
    status: str
    created_at: datetime
    error: Failure | None = None


class DatasetError(msgspec.Struct, frozen=True, kw_only=True):
    """A broken rule: its place, what is wrong there and what to do about it."""

    file: str
    line: int
    column: int | None = None
    offset: int | None = None
    pointer: str | None = None
    rule: str
    detail: str
    fix: str


class DatasetReport(msgspec.Struct, frozen=True, kw_only=True):
    """What reading a dataset's files found. All errors are counted; `errors` lists the first thousand at most."""

    dataset_id: str
    status: str
    policy: str
    rows: int
    rows_by_type: dict[str, int]
    skipped_rows: int
    duplicate_rows: int
    text_bytes: int
    unused_fields: dict[str, int] = {}
    error_count: int
    errors_by_rule: dict[str, int]
    errors: tuple[DatasetError, ...] = ()
    next_after: int | None = None


class PresignedUpload(msgspec.Struct, frozen=True, kw_only=True):
    """Where to send one file, for a short while."""

    upload_id: str
    key: str
    url: str
    method: str = "PUT"


class ArrivedPart(msgspec.Struct, frozen=True, kw_only=True):
    """A part that has arrived whole, and its bytes."""

    part_number: int
    size: int


class Upload(msgspec.Struct, frozen=True, kw_only=True):
    """What of an upload has arrived. `status` is waiting, receiving, complete or consumed; `missing` are the numbers,
    from 1, of the parts that have not arrived whole. `size` and `part_size` are None where none was said."""

    upload_id: str
    key: str
    filename: str
    status: str
    size: int | None
    part_size: int | None
    parts: int
    arrived: tuple[ArrivedPart, ...]
    missing: tuple[int, ...]
    expires_at: datetime


class SignedPart(msgspec.Struct, frozen=True, kw_only=True):
    """Where to PUT one part, for a short while."""

    part_number: int
    size: int
    url: str


class Preview(msgspec.Struct, frozen=True, kw_only=True):
    """The first rows of a dataset as they are trained on; `truncated` where a limit of bytes cut the list short."""

    dataset_id: str
    rows: tuple[dict[str, Any], ...]
    truncated: bool


class TokenCount(msgspec.Struct, frozen=True, kw_only=True):
    """How many tokens a dataset has for a base model; not `exact` where that was projected from its beginning."""

    dataset_id: str
    base_model_id: str
    tokens: int
    exact: bool
