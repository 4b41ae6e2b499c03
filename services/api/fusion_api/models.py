"""GET /models and the download manifest. URLs are short-lived and name one object each."""

from datetime import UTC, datetime, timedelta
from pathlib import PurePosixPath
from typing import Any, Literal
from uuid import UUID

import msgspec
from fusion_core.db.pool import queries
from fusion_core.trainer_protocol import Manifest
from fusion_http.paging import After, Limit, page
from fusion_http.problem_details import ProblemError, not_found
from litestar import Request, Response, delete, get, patch
from litestar.di import NamedDependency
from litestar.params import FromPath, JSONBody

from fusion_api.auth import Caller, needs
from fusion_api.datasets import Name
from fusion_api.examples import DOWNLOAD, MODELS
from fusion_api.job_views import JobType
from fusion_api.services import Services
from fusion_api.times import Time, check_expiry, shown, shown_or_none

ModelStatus = Literal["ready", "deleted"]


class Lineage(msgspec.Struct, frozen=True):
    job_id: UUID
    parent_model_id: UUID | None


class Model(msgspec.Struct, frozen=True, omit_defaults=True):
    id: UUID
    name: str
    version: str
    params: int
    base_model_id: UUID | None
    lineage: Lineage
    status: ModelStatus
    created_at: Time
    expires_at: Time | None = None


class ChangeModel(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Members left out stay as they are; `expires_at` null keeps the model until it is deleted."""

    name: Name | msgspec.UnsetType = msgspec.UNSET
    expires_at: Time | msgspec.UnsetType | None = msgspec.UNSET


class Ancestor(msgspec.Struct, frozen=True, kw_only=True):
    """One model of a line, and the job that made it from its parent, or from a catalog model, and a dataset."""

    model_id: UUID
    name: str
    version: str
    params: int
    status: ModelStatus
    created_at: Time
    job_id: UUID
    job_type: JobType
    dataset_id: UUID | None
    dataset: str | None
    parent_model_id: UUID | None
    base_model_id: UUID | None
    base_model: str | None


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
    expires_at: Time


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
        expires_at=shown_or_none(row["expires_at"]),
    )


async def _own_model(connection: Any, caller: Caller, model_id: UUID) -> Any:
    row = await queries.get_model(connection, account_id=caller.account_id, model_id=model_id)
    if row is None:
        raise not_found("model")
    return row


@get("/models", guards=[needs("read", "models")], summary="List your models", answer=MODELS)
async def list_models(
    request: Request[Any, Any, Any],
    services: NamedDependency[Services],
    caller: NamedDependency[Caller],
    limit: Limit = 50,
    after: After = None,
) -> Response[list[Model]]:
    rows = queries.list_models(services.pool, account_id=caller.account_id, limit=limit, after=after)
    return page(request, [_model(row) async for row in rows], limit)


@get("/models/{model_id:uuid}", guards=[needs("read", "models")], summary="Get a model")
async def get_model(
    model_id: FromPath[UUID], services: NamedDependency[Services], caller: NamedDependency[Caller]
) -> Model:
    return _model(await _own_model(services.pool, caller, model_id))


@get("/models/{model_id:uuid}/lineage", guards=[needs("read", "models")], summary="Where a model comes from")
async def get_lineage(
    model_id: FromPath[UUID], services: NamedDependency[Services], caller: NamedDependency[Caller]
) -> list[Ancestor]:
    """The model first, then its parents up to the one that was made from a catalog model; deleted ones too."""
    await _own_model(services.pool, caller, model_id)
    rows = queries.lineage_of_model(services.pool, account_id=caller.account_id, model_id=model_id)
    return [_ancestor(row) async for row in rows]


def _ancestor(row: Any) -> Ancestor:
    dataset = f"{row['dataset_name']} v{row['dataset_version']}" if row["dataset_name"] is not None else None
    return Ancestor(
        model_id=row["id"],
        name=row["name"],
        version=f"v{row['version']}",
        params=row["params"],
        status=row["status"],
        created_at=shown(row["created_at"]),
        job_id=row["job_id"],
        job_type=row["type"],
        dataset_id=row["dataset_id"],
        dataset=dataset,
        parent_model_id=row["parent_model_id"],
        base_model_id=row["base_model_id"],
        base_model=row["base_model_name"],
    )


@patch(
    "/models/{model_id:uuid}",
    guards=[needs("models")],
    summary="Rename a model, or set when it expires",
    example={"name": "support-bot-v2"},
)
async def change_model(
    model_id: FromPath[UUID],
    data: JSONBody[ChangeModel],
    services: NamedDependency[Services],
    caller: NamedDependency[Caller],
) -> Model:
    """A name that is taken becomes its next version. An expired model is deleted once no job uses it."""
    if data.expires_at is not msgspec.UNSET:
        check_expiry(data.expires_at, "DELETE takes a model away now")
    async with services.pool.acquire() as connection, connection.transaction():
        if await queries.lock_model(connection, account_id=caller.account_id, model_id=model_id) is None:
            raise not_found("model")
        if data.name is not msgspec.UNSET:
            await queries.lock_model_name(connection, account_id=caller.account_id, name=data.name)
            await queries.rename_model(connection, name=data.name, model_id=model_id)
        if data.expires_at is not msgspec.UNSET:
            await queries.keep_model_until(connection, expires_at=data.expires_at, model_id=model_id)
        return _model(await _own_model(connection, caller, model_id))


@delete(
    "/models/{model_id:uuid}", guards=[needs("models")], status_code=204, summary="Delete a model", problems=("in_use",)
)
async def delete_model(
    model_id: FromPath[UUID], services: NamedDependency[Services], caller: NamedDependency[Caller]
) -> None:
    """Refused while a job uses it. Models made from it stay."""
    async with services.pool.acquire() as connection, connection.transaction():
        if await queries.lock_model(connection, account_id=caller.account_id, model_id=model_id) is None:
            raise not_found("model")
        if await queries.model_in_use(connection, model_id=model_id):
            raise ProblemError("in_use", "a job that has not ended uses this model")
        await queries.delete_model(connection, model_id=model_id)


@get("/models/{model_id:uuid}/download", guards=[needs("models")], summary="Mint a download manifest", answer=DOWNLOAD)
async def download_model(
    model_id: FromPath[UUID], services: NamedDependency[Services], caller: NamedDependency[Caller]
) -> Download:
    row = await _own_model(services.pool, caller, model_id)
    expires_s = services.settings.download_expires_s
    files = []
    for entry in msgspec.convert(row["manifest"], Manifest).files:
        key, name = f"{row['s3_prefix']}/{entry.rel}", PurePosixPath(entry.rel).name
        url = await services.storage.presign_get(key, expires_s, name)
        files.append(DownloadFile(entry.rel, entry.size, entry.sha256, url))
    version = f"v{row['version']}"
    return Download(row["id"], row["name"], version, files, shown(datetime.now(UTC) + timedelta(seconds=expires_s)))
