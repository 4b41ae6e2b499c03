"""GET /base-models: the shared catalog of models that can be grown; and what a `base_model_id` names."""

from typing import Any
from uuid import UUID

import msgspec
from asyncpg import Record
from fusion_core.db.pool import queries
from fusion_core.db.rehearsal_pools import OPERATOR_ACCOUNT, Base
from fusion_http.paging import After, Limit, page
from fusion_http.problem_details import ProblemError, not_found
from litestar import Request, Response, get
from litestar.di import NamedDependency
from litestar.params import FromPath

from fusion_api.auth import Caller, needs
from fusion_api.examples import BASE_MODELS
from fusion_api.services import Services


class BaseModel(msgspec.Struct, frozen=True):
    id: UUID
    family: str
    name: str
    version: str
    params: int
    precision: str


class BaseModelDetail(BaseModel, frozen=True):
    """`max_seq_len` is the longest sequence that it takes; `rehearsal` says whether the catalog has text of its own."""

    layers: int
    hidden_size: int
    vocab_size: int
    max_seq_len: int | None
    bytes: int
    rehearsal: bool


class FoundModel(msgspec.Struct, frozen=True):
    """What a job starts from, a catalog model or one of the account's own, and where the body named it."""

    config: dict[str, Any]
    name: str
    params: int
    s3_prefix: str
    manifest: Any
    base: Base
    pointer: str


async def find_base(services: Services, caller: Caller, model_id: UUID, pointer: str = "/base_model_id") -> FoundModel:
    """A catalog model, or a model of the account's own. Raises ProblemError not_found."""
    row = await queries.get_base_model(services.pool, base_model_id=model_id)
    if row is not None:
        return _found(row, Base(base_model_id=model_id, account_id=OPERATOR_ACCOUNT), pointer)
    try:
        return await find_own_model(services, caller, model_id, pointer)
    except ProblemError as error:
        raise not_found("base model, nor a model of yours", pointer) from error


async def find_own_model(services: Services, caller: Caller, model_id: UUID, pointer: str) -> FoundModel:
    """Raises ProblemError not_found."""
    row = await queries.get_model(services.pool, account_id=caller.account_id, model_id=model_id)
    if row is None:
        raise not_found("model of yours", pointer)
    return _found(row, Base(model_id=model_id, account_id=caller.account_id), pointer)


def _found(row: Record, base: Base, pointer: str) -> FoundModel:
    return FoundModel(row["config"], row["name"], row["params"], row["s3_prefix"], row["manifest"], base, pointer)


@get("/base-models", guards=[needs("read", "train", "models")], summary="List base models", answer=BASE_MODELS)
async def list_base_models(
    request: Request[Any, Any, Any], services: NamedDependency[Services], limit: Limit = 50, after: After = None
) -> Response[list[BaseModel]]:
    rows = queries.list_base_models(services.pool, limit=limit, after=after)
    models = [BaseModel(*(row[name] for name in BaseModel.__struct_fields__)) async for row in rows]
    return page(request, models, limit)


@get("/base-models/{base_model_id:uuid}", guards=[needs("read", "train", "models")], summary="Get a base model")
async def get_base_model(base_model_id: FromPath[UUID], services: NamedDependency[Services]) -> BaseModelDetail:
    row = await queries.get_base_model(services.pool, base_model_id=base_model_id)
    if row is None:
        raise not_found("base model")
    config = row["config"]
    positions = config.get("max_position_embeddings")
    return BaseModelDetail(
        **{name: row[name] for name in BaseModel.__struct_fields__},
        layers=config["num_hidden_layers"],
        hidden_size=config["hidden_size"],
        vocab_size=config["vocab_size"],
        max_seq_len=positions if isinstance(positions, int) else None,
        bytes=sum(file["size"] for file in row["manifest"]["files"]),
        rehearsal=row["rehearsal"] is not None,
    )
