"""Datasets: made from uploads, read by an internal job, then immutable. A new upload is a new version."""

from pathlib import PurePosixPath
from typing import Annotated, Any, Literal
from uuid import UUID

import msgspec
from fusion_core.db.jobs import NewJob, submit_job
from fusion_core.db.pool import Connection, queries
from fusion_core.job_spec import BadRowPolicy, IngestSpec
from fusion_core.storage import ObjectHead
from fusion_http.paging import After, Limit, page
from fusion_http.problem_details import FieldError, ProblemError, invalid, not_found
from litestar import Request, Response, delete, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, JSONBody

from fusion_api.auth import Caller, needs
from fusion_api.examples import DATASETS
from fusion_api.idempotency import Once
from fusion_api.job_views import Failure
from fusion_api.services import Services
from fusion_api.times import Time, shown
from fusion_api.uploads import check_room

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]

EXAMPLE = {"upload_ids": ["0198b3a2-6f00-7000-8000-000000000003"], "name": "support-chats"}


class CreateDataset(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`policy`: a bad row fails the dataset, or is left out and counted."""

    upload_ids: Annotated[list[UUID], msgspec.Meta(min_length=1, max_length=100)]
    name: Name | None = None
    policy: BadRowPolicy = "fail"


DatasetStatus = Literal["validating", "ready", "failed"]


class Dataset(msgspec.Struct, frozen=True):
    """`skipped_rows` are the bad rows that were left out; the report has them, and `error` a few of them."""

    id: UUID
    name: str
    version: str
    shard_count: int
    bytes: int
    rows: int
    skipped_rows: int
    status: DatasetStatus
    created_at: Time
    error: Failure | None


def _dataset(row: Any) -> Dataset:
    return Dataset(
        id=row["id"],
        name=row["name"],
        version=f"v{row['version']}",
        shard_count=row["shard_count"],
        bytes=row["bytes"],
        rows=row["rows"],
        skipped_rows=row["skipped_rows"],
        status=row["status"],
        created_at=shown(row["created_at"]),
        error=msgspec.convert(row["error"], Failure) if row["error"] is not None else None,
    )


@get("/datasets", guards=[needs("read", "datasets")], summary="List your datasets", answer=DATASETS)
async def list_datasets(
    request: Request[Any, Any, Any],
    services: NamedDependency[Services],
    caller: NamedDependency[Caller],
    limit: Limit = 50,
    after: After = None,
) -> Response[list[Dataset]]:
    rows = queries.list_datasets(services.pool, account_id=caller.account_id, limit=limit, after=after)
    return page(request, [_dataset(row) async for row in rows], limit)


@get("/datasets/{dataset_id:uuid}", guards=[needs("read", "datasets")], summary="Get a dataset")
async def get_dataset(
    dataset_id: FromPath[UUID], services: NamedDependency[Services], caller: NamedDependency[Caller]
) -> Dataset:
    return _dataset(await own_dataset(services, caller, dataset_id))


async def own_dataset(services: Services, caller: Caller, dataset_id: UUID | None, pointer: str = "") -> Any:
    """Its row. Raises ProblemError not_found."""
    row = await queries.get_dataset(services.pool, account_id=caller.account_id, dataset_id=dataset_id)
    if row is None:
        raise not_found("dataset", pointer)
    return row


async def ready_dataset(services: Services, caller: Caller, dataset_id: UUID) -> Any:
    """Its row. Raises ProblemError not_found or dataset_not_ready."""
    row = await own_dataset(services, caller, dataset_id, "/dataset_id")
    if row["status"] != "ready":
        errors = [FieldError("/dataset_id", f"the dataset is {row['status']}")]
        raise ProblemError("dataset_not_ready", f"the dataset is {row['status']}", errors)
    return row


async def trainable_dataset(services: Services, caller: Caller, dataset_id: UUID) -> None:
    """Raises ProblemError not_found, dataset_not_ready, or validation_failed where it has rows no job can learn."""
    await ready_dataset(services, caller, dataset_id)
    preferences = await queries.count_preference_rows(services.pool, dataset_id=dataset_id)
    if preferences:
        detail = f"has {preferences} preference rows, which no job learns yet; leave them out of the dataset"
        raise invalid([FieldError("/dataset_id", detail)])


@delete(
    "/datasets/{dataset_id:uuid}",
    guards=[needs("datasets")],
    status_code=204,
    summary="Delete a dataset",
    problems=("in_use",),
)
async def delete_dataset(
    dataset_id: FromPath[UUID], services: NamedDependency[Services], caller: NamedDependency[Caller]
) -> None:
    """Refused while a job reads it. Its number is not used again: the next version of the name is a new one."""
    async with services.pool.acquire() as connection, connection.transaction():
        row = await queries.lock_dataset(connection, account_id=caller.account_id, dataset_id=dataset_id)
        if row is None:
            raise not_found("dataset")
        if await queries.dataset_in_use(connection, dataset_id=dataset_id):
            raise ProblemError("in_use", "a job that has not ended reads this dataset")
        await queries.delete_dataset(connection, dataset_id=dataset_id)


@post(
    "/datasets",
    guards=[needs("datasets")],
    status_code=201,
    summary="Make a dataset from uploads",
    problems=("not_found", "upload_missing", "upload_consumed", "quota_exceeded"),
    example=EXAMPLE,
)
async def create_dataset(
    data: JSONBody[CreateDataset],
    once: NamedDependency[Once],
    services: NamedDependency[Services],
    caller: NamedDependency[Caller],
) -> Dataset:
    """The uploads are pinned as they are now; reading them is an internal job, and GET shows its end."""
    dataset_id = await once.find() or await _make(data, once, services, caller)
    return _dataset(await own_dataset(services, caller, dataset_id))


async def _make(data: CreateDataset, once: Once, services: Services, caller: Caller) -> UUID | None:
    uploads = await _uploads(services, caller, data.upload_ids)
    heads = await _pin(services, uploads)
    name = data.name or PurePosixPath(uploads[0]["filename"]).stem or "dataset"

    # Those that did not say how large they would be; the others were counted when they were announced.
    unannounced = sum(head.size for upload, head in zip(uploads, heads, strict=True) if upload["size"] is None)

    async def insert(connection: Connection) -> UUID:
        await queries.lock_account(connection, account_id=caller.account_id)
        stored = await queries.storage_of_account(connection, account_id=caller.account_id)
        check_room(stored["bytes"], unannounced, services.settings.storage_quota_bytes, "/upload_ids")
        await queries.lock_dataset_name(connection, account_id=caller.account_id, name=name)
        row = await queries.insert_dataset(connection, account_id=caller.account_id, name=name)
        await _consume(connection, row["id"], uploads, heads)
        named = tuple((upload["s3_key"], upload["filename"]) for upload in uploads)
        spec = IngestSpec(uploads=named, policy=data.policy)
        pool = services.settings.ingest_pool
        new = NewJob(account_id=caller.account_id, type="ingest", spec=spec, pool=pool, dataset_id=row["id"])
        await submit_job(connection, new)
        dataset_id: UUID = row["id"]
        return dataset_id

    return await once.make(insert)


async def _consume(connection: Connection, dataset_id: UUID, uploads: list[Any], heads: list[ObjectHead]) -> None:
    """Bind the uploads to the dataset, as they are. Raises ProblemError, naming every one that another one has."""
    taken = [
        await queries.insert_dataset_upload(
            connection, upload_id=upload["id"], dataset_id=dataset_id, ordinal=ordinal, size=head.size, etag=head.etag
        )
        for ordinal, (upload, head) in enumerate(zip(uploads, heads, strict=True))
    ]
    used = [ordinal for ordinal, row in enumerate(taken) if row is None]
    if used:
        raise ProblemError("upload_consumed", "an upload makes one dataset", _at(used, "already used"))


async def _uploads(services: Services, caller: Caller, upload_ids: list[UUID]) -> list[Any]:
    """The rows of the uploads in the order asked for. Raises ProblemError, naming every one that will not do."""
    twice = [number for number, upload_id in enumerate(upload_ids) if upload_id in upload_ids[:number]]
    if twice:
        raise invalid(_at(twice, "the same upload is named before"))
    rows = queries.get_uploads(services.pool, account_id=caller.account_id, upload_ids=upload_ids)
    found = {row["id"]: row async for row in rows}
    unknown = [number for number, upload_id in enumerate(upload_ids) if upload_id not in found]
    if unknown:
        raise ProblemError("not_found", "some uploads do not exist", _at(unknown, "no such upload"))
    return [found[upload_id] for upload_id in upload_ids]


def _at(numbers: list[int], detail: str) -> list[FieldError]:
    return [FieldError(f"/upload_ids/{number}", detail) for number in numbers]


async def _pin(services: Services, uploads: list[Any]) -> list[ObjectHead]:
    """Each upload as it lies in storage now. Raises ProblemError upload_missing, naming every one that is not there."""
    heads = [await services.storage.head(upload["s3_key"]) for upload in uploads]
    missing = [number for number, head in enumerate(heads) if head is None]
    if missing:
        raise ProblemError("upload_missing", "some uploads never came", _at(missing, "nothing was PUT to its URL"))
    return [head for head in heads if head is not None]
