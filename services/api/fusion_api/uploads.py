"""POST /uploads/presign: a URL to PUT one file to; the API never receives its bytes."""

import re
from typing import Annotated
from uuid import UUID, uuid4

import msgspec
from fusion_core import s3_keys
from fusion_core.db.pool import Connection, queries
from litestar import post
from litestar.di import NamedDependency
from litestar.params import JSONBody

from fusion_api.auth import Caller, needs
from fusion_api.idempotency import Once
from fusion_api.services import Services


class PresignRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    filename: Annotated[str, msgspec.Meta(min_length=1, max_length=255)]
    content_type: Annotated[str, msgspec.Meta(pattern=r"^[a-zA-Z0-9.+-]+/[a-zA-Z0-9.+-]+$", max_length=255)] = (
        "application/octet-stream"
    )


class Presigned(msgspec.Struct, frozen=True):
    upload_id: UUID
    key: str
    url: str
    method: str


def sanitised(filename: str) -> str:
    """The last part of a path, in letters, digits, dot, dash and underscore, not hidden, at most 128 long."""
    last = re.split(r"[/\\]", filename)[-1]
    return re.sub(r"[^A-Za-z0-9._-]", "_", last).lstrip(".")[-128:] or "file"


@post("/uploads/presign", guards=[needs("datasets")], status_code=200, summary="Presign an upload")
async def presign_upload(
    data: JSONBody[PresignRequest],
    once: NamedDependency[Once],
    services: NamedDependency[Services],
    caller: NamedDependency[Caller],
) -> Presigned:
    filename, expires_s = sanitised(data.filename), services.settings.upload_expires_s

    async def insert(connection: Connection) -> UUID:
        upload_id = uuid4()
        await queries.insert_upload(
            connection,
            id=upload_id,
            account_id=caller.account_id,
            filename=filename,
            content_type=data.content_type,
            s3_key=s3_keys.upload(caller.account_id, upload_id, filename),
            expires_s=expires_s + 24 * 3600,  # time to register it; pruned afterwards
        )
        return upload_id

    upload_id = await once.make(insert)
    assert upload_id is not None
    key = s3_keys.upload(caller.account_id, upload_id, filename)
    url = await services.storage.presign_put(key, data.content_type, expires_s)
    return Presigned(upload_id, key, url, "PUT")
