"""Large uploads in parts that can be sent again one by one: begin, see what arrived, sign what is missing, complete."""

import asyncio
import math
from typing import Annotated, Any, Literal
from uuid import UUID, uuid4

import msgspec
from fusion_core import s3_keys
from fusion_core.db.pool import Connection, queries
from fusion_core.storage import UploadedPart
from fusion_http.problem_details import FieldError, ProblemError
from litestar import delete, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, JSONBody

from fusion_api.auth import Caller, needs
from fusion_api.idempotency import Once
from fusion_api.services import Services
from fusion_api.times import Time, shown
from fusion_api.uploads import ContentType, Filename, check_quota, own_upload, sanitised

SMALLEST_PART, LARGEST_PART, MOST_PARTS = 5 * 2**20, 5 * 2**30, 10_000  # S3's limits
DEFAULT_PART = 64 * 2**20
MOST_BYTES = 5 * 2**40
URLS_AT_ONCE = 1000
REGISTER_WITHIN_S = 7 * 24 * 3600
BEGIN_WITHIN_S = 3600  # else S3 was away and nobody asked again: it no longer counts, and is swept as expired
COMPLETE_WITHIN_S = 60.0  # longer than S3 is waited for
LOOK_AGAIN_S = 0.2
EXAMPLE = {"filename": "train.parquet", "content_type": "application/vnd.apache.parquet", "size": 10 * 2**30}


class BeginMultipart(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`part_size` is chosen so that the parts are at most 10,000, unless given; all but the last have it."""

    filename: Filename
    content_type: ContentType = "application/octet-stream"
    size: Annotated[int, msgspec.Meta(ge=1, le=MOST_BYTES)]
    part_size: Annotated[int, msgspec.Meta(ge=SMALLEST_PART, le=LARGEST_PART)] | None = None


class Part(msgspec.Struct, frozen=True):
    part_number: int
    size: int


class Upload(msgspec.Struct, frozen=True, kw_only=True):
    """`missing` are the numbers, from 1, of the parts that have not arrived, or not whole."""

    upload_id: UUID
    key: str
    filename: str
    status: Literal["waiting", "receiving", "complete", "consumed"]
    size: int | None
    part_size: int | None
    parts: int
    arrived: list[Part]
    missing: list[int]
    expires_at: Time


class SignParts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which parts to sign; without a list the first thousand that are missing."""

    part_numbers: (
        Annotated[
            list[Annotated[int, msgspec.Meta(ge=1, le=MOST_PARTS)]],
            msgspec.Meta(min_length=1, max_length=URLS_AT_ONCE),
        ]
        | None
    ) = None


class SignedPart(msgspec.Struct, frozen=True):
    part_number: int
    size: int
    url: str
    method: str = "PUT"


def size_of_part(row: Any, number: int) -> int:
    """All parts but the last are of the agreed size."""
    return int(min(row["part_size"], row["size"] - (number - 1) * row["part_size"]))


def parts_of(row: Any) -> int:
    return 1 if row["part_size"] is None else math.ceil(row["size"] / row["part_size"])


async def _whole_parts(services: Services, row: Any) -> list[UploadedPart] | None:
    """The parts that are there and whole; None when the upload is no longer open in S3."""
    found = await services.storage.list_parts(row["s3_key"], row["multipart_id"])
    if found is None:
        return None
    count = parts_of(row)
    return [part for part in found if part.number <= count and part.size == size_of_part(row, part.number)]


def _missing(row: Any, arrived: list[UploadedPart]) -> list[int]:
    numbers = {part.number for part in arrived}
    return [number for number in range(1, parts_of(row) + 1) if number not in numbers]


def _check_complete(row: Any, arrived: list[UploadedPart]) -> None:
    """Raises ProblemError upload_incomplete, naming the first twenty parts that are missing."""
    if missing := _missing(row, arrived):
        numbers = ", ".join(map(str, missing[:20])) + (" ..." if len(missing) > 20 else "")
        raise ProblemError("upload_incomplete", f"{len(missing)} of {parts_of(row)} parts are missing: {numbers}")


async def _shown(services: Services, row: Any) -> Upload:
    parts = parts_of(row)
    arrived = await _whole_parts(services, row) if row["multipart_id"] is not None else None
    if arrived is None:
        head = await services.storage.head(row["s3_key"])
        there, missing = head is not None, []
        arrived = [UploadedPart(1, head.size, head.etag)] if head is not None and parts == 1 else []
    else:
        there, missing = False, _missing(row, arrived)
    status: Any = "consumed" if row["dataset_id"] else "complete" if there else "receiving" if arrived else "waiting"
    return Upload(
        upload_id=row["id"],
        key=row["s3_key"],
        filename=row["filename"],
        status=status,
        size=row["size"],
        part_size=row["part_size"],
        parts=parts,
        arrived=[Part(part.number, part.size) for part in arrived],
        missing=missing,
        expires_at=shown(row["expires_at"]),
    )


@post(
    "/uploads/multipart",
    guards=[needs("datasets")],
    status_code=201,
    summary="Begin an upload in parts",
    problems=("not_found", "quota_exceeded"),
    example=EXAMPLE,
)
async def begin_multipart(
    data: JSONBody[BeginMultipart],
    once: NamedDependency[Once],
    services: NamedDependency[Services],
    caller: NamedDependency[Caller],
) -> Upload:
    part_size = data.part_size or max(DEFAULT_PART, math.ceil(data.size / MOST_PARTS))
    if math.ceil(data.size / part_size) > MOST_PARTS:
        detail = (
            f"makes more than {MOST_PARTS} parts of {data.size} bytes; choose at least {-(-data.size // MOST_PARTS)}"
        )
        raise ProblemError("validation_failed", f"part_size {detail}", [FieldError("/part_size", detail)])
    filename = sanitised(data.filename)

    async def insert(connection: Connection) -> UUID:
        await check_quota(connection, services, caller, data.size)
        upload_id = uuid4()
        await queries.insert_upload(
            connection,
            id=upload_id,
            account_id=caller.account_id,
            filename=filename,
            content_type=data.content_type,
            s3_key=s3_keys.upload(caller.account_id, upload_id, filename),
            size=data.size,
            part_size=None,
            multipart_id=None,
            expires_s=BEGIN_WITHIN_S,
        )
        return upload_id

    row = await own_upload(services.pool, caller, await once.make(insert))
    if row["multipart_id"] is None:
        await _begin_in_s3(services, row, part_size)
        row = await own_upload(services.pool, caller, row["id"])
    return await _shown(services, row)


async def _begin_in_s3(services: Services, row: Any, part_size: int) -> None:
    """Outside of any transaction: an S3 that hangs holds no connection and no lock of the account.

    A process that dies here leaves a row that the repeated request begins again, and an upload in S3 that is pruned.
    """
    multipart_id = await services.storage.begin_multipart(row["s3_key"], row["content_type"])
    kept = await queries.keep_multipart(
        services.pool,
        multipart_id=multipart_id,
        part_size=part_size,
        expires_s=REGISTER_WITHIN_S,
        upload_id=row["id"],
    )
    if kept is None:
        await services.storage.abort_multipart(row["s3_key"], multipart_id)


@get("/uploads/{upload_id:uuid}", guards=[needs("datasets")], summary="What of an upload has arrived")
async def get_upload(
    upload_id: FromPath[UUID], services: NamedDependency[Services], caller: NamedDependency[Caller]
) -> Upload:
    return await _shown(services, await own_upload(services.pool, caller, upload_id))


@post(
    "/uploads/{upload_id:uuid}/parts",
    guards=[needs("datasets")],
    status_code=200,
    summary="Sign parts to PUT",
    problems=("upload_consumed",),
    example={"part_numbers": [1, 2, 3]},
)
async def sign_parts(
    upload_id: FromPath[UUID],
    data: JSONBody[SignParts],
    once: NamedDependency[Once],
    services: NamedDependency[Services],
    caller: NamedDependency[Caller],
) -> list[SignedPart]:
    """Each URL takes one part, for as long as a presigned URL is good."""
    await once.allow()
    row = await own_upload(services.pool, caller, upload_id)
    shown_now = await _shown(services, row)
    if row["multipart_id"] is None or shown_now.status in ("complete", "consumed"):
        raise ProblemError("upload_consumed", "this upload takes no more parts")
    numbers = data.part_numbers or shown_now.missing[:URLS_AT_ONCE]
    beyond = [place for place, number in enumerate(data.part_numbers or ()) if number > shown_now.parts]
    if beyond:
        errors = [FieldError(f"/part_numbers/{place}", f"the last part is {shown_now.parts}") for place in beyond]
        raise ProblemError("validation_failed", "no such parts", errors)
    expires_s = services.settings.upload_expires_s
    return [
        SignedPart(
            number,
            size_of_part(row, number),
            await services.storage.presign_part(row["s3_key"], row["multipart_id"], number, expires_s),
        )
        for number in numbers
    ]


@post(
    "/uploads/{upload_id:uuid}/complete",
    guards=[needs("datasets")],
    status_code=200,
    summary="Complete an upload",
    problems=(
        "upload_incomplete",
        "upload_missing",
        "upload_consumed",
    ),
)
async def complete_upload(
    upload_id: FromPath[UUID],
    once: NamedDependency[Once],
    services: NamedDependency[Services],
    caller: NamedDependency[Caller],
) -> Upload:
    """All parts must be there; completing again changes nothing."""
    await once.allow()
    row = await own_upload(services.pool, caller, upload_id)
    if row["multipart_id"] is not None:
        await _put_together(services, row)
    upload = await _shown(services, row)
    if upload.status not in ("complete", "consumed"):
        raise ProblemError("upload_missing", "nothing was PUT to its URL")
    return upload


async def _put_together(services: Services, row: Any) -> None:
    """One request at a time: while S3 puts the parts together a second one would see some of them gone.

    A row says who, so that no connection is held meanwhile. A request that was cut off keeps it until its time is over,
    since S3 may still be at work. Raises ProblemError upload_incomplete or not_ready.
    """
    asked = {"upload_id": row["id"], "for_s": COMPLETE_WITHIN_S}
    for _ in range(int(COMPLETE_WITHIN_S / LOOK_AGAIN_S)):
        if await queries.take_completing(services.pool, **asked) is not None:
            break
        if await _whole_parts(services, row) is None:
            return
        await asyncio.sleep(LOOK_AGAIN_S)
    else:
        raise ProblemError("not_ready", "S3 is still putting its parts together")
    try:
        arrived = await _whole_parts(services, row)
        if arrived is not None:
            _check_complete(row, arrived)
            await services.storage.complete_multipart(row["s3_key"], row["multipart_id"], arrived)
    except Exception:
        await queries.let_completing_go(services.pool, upload_id=row["id"])
        raise
    await queries.let_completing_go(services.pool, upload_id=row["id"])


@delete(
    "/uploads/{upload_id:uuid}",
    guards=[needs("datasets")],
    status_code=204,
    summary="Abort an upload",
    problems=("upload_consumed",),
)
async def abort_upload(
    upload_id: FromPath[UUID], services: NamedDependency[Services], caller: NamedDependency[Caller]
) -> None:
    """What has arrived is dropped. An upload that has become part of a dataset stays with it."""
    row = await own_upload(services.pool, caller, upload_id)
    if await queries.delete_upload(services.pool, account_id=caller.account_id, upload_id=upload_id) is None:
        raise ProblemError("upload_consumed", "it is part of a dataset; delete the dataset instead")
    if row["multipart_id"] is not None:
        await services.storage.abort_multipart(row["s3_key"], row["multipart_id"])
    await services.storage.delete([row["s3_key"]])
