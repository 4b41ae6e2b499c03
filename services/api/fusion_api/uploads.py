"""POST /uploads/presign: a URL to PUT one file to; the API never receives its bytes."""

import re
from typing import Annotated, Any
from uuid import UUID, uuid4

import msgspec
from fusion_core import s3_keys
from fusion_core.db.pool import Connection, Pool, queries
from fusion_http.problem_details import FieldError, ProblemError, not_found
from litestar import post
from litestar.di import NamedDependency
from litestar.params import JSONBody

from fusion_api.auth import Caller, needs
from fusion_api.examples import PRESIGNED
from fusion_api.idempotency import Once
from fusion_api.services import Services

ONE_PUT_BYTES = 5 * 2**30  # the most that S3 takes in one PUT
REGISTER_WITHIN_S = 24 * 3600  # from the end of its URL; then it is pruned
EXAMPLE = {"filename": "train.jsonl", "content_type": "application/jsonl", "size": 1_048_576}

Filename = Annotated[str, msgspec.Meta(min_length=1, max_length=255)]
ContentType = Annotated[str, msgspec.Meta(pattern=r"^[a-zA-Z0-9.+-]+/[a-zA-Z0-9.+-]+$", max_length=255)]


class PresignRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """With `size` the URL takes a file of exactly that many bytes."""

    filename: Filename
    content_type: ContentType = "application/octet-stream"
    size: Annotated[int, msgspec.Meta(ge=1, le=ONE_PUT_BYTES)] | None = None


class Presigned(msgspec.Struct, frozen=True):
    upload_id: UUID
    key: str
    url: str
    method: str


def sanitised(filename: str) -> str:
    """The last part of a path, in letters, digits, dot, dash and underscore, not hidden, at most 128 long."""
    last = re.split(r"[/\\]", filename)[-1]
    return re.sub(r"[^A-Za-z0-9._-]", "_", last).lstrip(".")[-128:] or "file"


async def own_upload(connection: Pool | Connection, caller: Caller, upload_id: UUID | None) -> Any:
    """Its row. Raises ProblemError not_found."""
    row = await queries.get_upload(connection, account_id=caller.account_id, upload_id=upload_id)
    if row is None:
        raise not_found("upload")
    return row


async def check_quota(connection: Connection, services: Services, caller: Caller, size: int) -> None:
    """Under the account's lock. Raises ProblemError quota_exceeded."""
    await queries.lock_account(connection, account_id=caller.account_id)
    stored, settings = await queries.storage_of_account(connection, account_id=caller.account_id), services.settings
    if stored["open_uploads"] >= settings.max_open_uploads:
        raise ProblemError("quota_exceeded", f"{stored['open_uploads']} uploads are waiting to become datasets")
    check_room(stored["bytes"], size, settings.storage_quota_bytes, "/size")


def check_room(stored: int, more: int, allowed: int, pointer: str) -> None:
    """Whether so many more bytes fit. Raises ProblemError quota_exceeded."""
    if stored + more > allowed:
        detail = f"{stored} bytes are stored and {allowed} allowed"
        raise ProblemError("quota_exceeded", detail, [FieldError(pointer, f"{more} more do not fit")])


@post(
    "/uploads/presign",
    guards=[needs("datasets")],
    status_code=200,
    summary="Presign an upload",
    answer=PRESIGNED,
    problems=("not_found", "quota_exceeded"),
    example=EXAMPLE,
)
async def presign_upload(
    data: JSONBody[PresignRequest],
    once: NamedDependency[Once],
    services: NamedDependency[Services],
    caller: NamedDependency[Caller],
) -> Presigned:
    filename, expires_s = sanitised(data.filename), services.settings.upload_expires_s

    async def insert(connection: Connection) -> UUID:
        await check_quota(connection, services, caller, data.size or 0)
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
            expires_s=expires_s + REGISTER_WITHIN_S,
        )
        return upload_id

    row = await own_upload(services.pool, caller, await once.make(insert))
    url = await services.storage.presign_put(row["s3_key"], data.content_type, expires_s, data.size)
    return Presigned(row["id"], row["s3_key"], url, "PUT")
