"""GET /models and the download manifest. URLs are short-lived and name one object each."""

from datetime import UTC, datetime, timedelta
from pathlib import PurePosixPath
from typing import Any
from uuid import UUID

import msgspec
from fusion_core.db.pool import queries
from fusion_core.trainer_protocol import Manifest
from litestar import Request, Response, get
from litestar.di import NamedDependency
from litestar.params import FromPath

from fusion_api.auth import Caller, needs
from fusion_api.paging import After, Limit, page
from fusion_api.problem_details import not_found
from fusion_api.services import Services
from fusion_api.times import shown


class Lineage(msgspec.Struct, frozen=True):
    job_id: UUID
    parent_model_id: UUID | None


class Model(msgspec.Struct, frozen=True):
    id: UUID
    name: str
    version: str
    params: int
    base_model_id: UUID | None
    lineage: Lineage
    status: str
    created_at: datetime


class DownloadFile(msgspec.Struct, frozen=True):
    rel: str
    size: int
    sha256: str
    url: str


class Download(msgspec.Struct, frozen=True):
    model_id: UUID
    name: str
    version: str
    files: list[DownloadFile]
    expires_at: datetime


def _model(row: Any) -> Model:
    return Model(
        id=row["id"],
        name=row["name"],
        version=f"v{row['version']}",
        params=row["params"],
        base_model_id=row["base_model_id"],
        lineage=Lineage(row["job_id"], row["parent_model_id"]),
        status=row["status"],
        created_at=shown(row["created_at"]),
    )


@get("/models", guards=[needs("read", "models")], summary="List your models")
async def list_models(
    request: Request[Any, Any, Any],
    services: NamedDependency[Services],
    caller: NamedDependency[Caller],
    limit: Limit = 50,
    after: After = None,
) -> Response[list[Model]]:
    rows = queries.list_models(services.pool, account_id=caller.account_id, limit=limit, after=after)
    return page(request, [_model(row) async for row in rows], limit)


@get("/models/{model_id:uuid}/download", guards=[needs("models")], summary="Mint a download manifest")
async def download_model(
    model_id: FromPath[UUID], services: NamedDependency[Services], caller: NamedDependency[Caller]
) -> Download:
    row = await queries.get_model(services.pool, account_id=caller.account_id, model_id=model_id)
    if row is None:
        raise not_found("model")
    expires_s = services.settings.download_expires_s
    files = []
    for entry in msgspec.convert(row["manifest"], Manifest).files:
        key, name = f"{row['s3_prefix']}/{entry.rel}", PurePosixPath(entry.rel).name
        url = await services.storage.presign_get(key, expires_s, name)
        files.append(DownloadFile(entry.rel, entry.size, entry.sha256, url))
    version = f"v{row['version']}"
    return Download(row["id"], row["name"], version, files, shown(datetime.now(UTC) + timedelta(seconds=expires_s)))
