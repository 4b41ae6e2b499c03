"""GET /base-models: the shared catalog of models that can be grown."""

from typing import Any
from uuid import UUID

import msgspec
from fusion_core.db.pool import queries
from litestar import Request, Response, get
from litestar.di import NamedDependency

from fusion_api.auth import needs
from fusion_api.paging import After, Limit, page
from fusion_api.services import Services


class BaseModel(msgspec.Struct, frozen=True):
    id: UUID
    family: str
    name: str
    version: str
    params: int
    precision: str


@get("/base-models", guards=[needs("read", "train", "models")], summary="List base models")
async def list_base_models(
    request: Request[Any, Any, Any], services: NamedDependency[Services], limit: Limit = 50, after: After = None
) -> Response[list[BaseModel]]:
    rows = queries.list_base_models(services.pool, limit=limit, after=after)
    models = [BaseModel(*(row[name] for name in BaseModel.__struct_fields__)) async for row in rows]
    return page(request, models, limit)
