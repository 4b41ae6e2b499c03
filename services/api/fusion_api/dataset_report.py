"""GET /datasets/{id}/report: what was read, what is wrong and where, a page of errors at a time."""

from typing import Annotated, Any
from uuid import UUID

import msgspec
from fusion_core.db.pool import queries
from fusion_core.job_spec import BadRowPolicy
from fusion_http.problem_details import ProblemError
from litestar import get
from litestar.di import NamedDependency
from litestar.params import FromPath, QueryParameter

from fusion_api.auth import Caller, needs
from fusion_api.datasets import DatasetStatus, own_dataset
from fusion_api.services import Services

MAX_ERRORS = 1000  # as many as a report lists


class DatasetError(msgspec.Struct, frozen=True, kw_only=True):
    """A broken rule and its place: lines and columns count from 1, `offset` bytes from 0, `pointer` is RFC 6901."""

    file: str
    line: int
    column: int | None = None
    offset: int | None = None
    pointer: str | None = None
    rule: str
    detail: str
    fix: str


class DatasetFile(msgspec.Struct, frozen=True, kw_only=True):
    """`size` is that of the upload in bytes."""

    file: str
    format: str
    compression: str
    size: int
    rows: int
    skipped_rows: int


class DatasetReport(msgspec.Struct, frozen=True, kw_only=True):
    """Everything is counted; the first thousand errors are listed, from `after` to `next_after`, null at the end.

    `lengths` counts rows by the bytes of their texts, rounded up to a power of two.
    """

    dataset_id: UUID
    status: DatasetStatus
    policy: BadRowPolicy
    rows: int
    rows_by_type: dict[str, int]
    skipped_rows: int
    duplicate_rows: int
    text_bytes: int
    lengths: dict[str, int]
    unused_fields: dict[str, int]
    files: list[DatasetFile]
    error_count: int
    errors_by_rule: dict[str, int]
    errors: list[DatasetError]
    next_after: int | None


@get(
    "/datasets/{dataset_id:uuid}/report",
    guards=[needs("read", "datasets")],
    summary="What reading a dataset found",
    problems=("dataset_not_ready",),
)
async def get_dataset_report(
    dataset_id: FromPath[UUID],
    services: NamedDependency[Services],
    caller: NamedDependency[Caller],
    limit: Annotated[int, QueryParameter(ge=1, le=MAX_ERRORS, description="how many errors at most")] = 100,
    after: Annotated[int, QueryParameter(ge=0, le=MAX_ERRORS, description="how many errors to pass over")] = 0,
) -> DatasetReport:
    """Once the dataset is ready or failed. One whose files could not be read at all has none: see its `error`."""
    row = await own_dataset(services, caller, dataset_id)
    report: dict[str, Any] | None = await queries.get_dataset_report(services.pool, dataset_id=dataset_id)
    if report is None and row["status"] == "validating":
        raise ProblemError("dataset_not_ready", "the dataset is validating")
    if report is None:
        raise ProblemError("not_found", "no report: the files of this dataset were never read")
    listed = report["errors"]
    shown = {
        "dataset_id": dataset_id,
        "status": row["status"],
        "errors": listed[after : after + limit],
        "next_after": after + limit if after + limit < len(listed) else None,
    }
    return msgspec.convert(report | shown, DatasetReport)
