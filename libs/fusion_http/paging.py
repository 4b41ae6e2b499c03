"""Bare arrays, newest first, paged by `?limit=&after=` with a Link header (RFC 8288)."""

from collections.abc import Sequence
from typing import Annotated, Any, TypeVar
from urllib.parse import urlencode
from uuid import UUID

from litestar import Request, Response
from litestar.params import QueryParameter

Limit = Annotated[int, QueryParameter(ge=1, le=200, description="how many at most")]
After = Annotated[UUID | None, QueryParameter(description="the id of the last item of the page before")]
T = TypeVar("T")


def page(request: Request[Any, Any, Any], items: Sequence[Any], limit: int) -> Response[Any]:
    """A page of items with `id`, and the link to the next one, under the same filters, if this one is full."""
    headers = {}
    if len(items) == limit:
        kept = [(name, value) for name, value in request.query_params.multi_items() if name not in ("limit", "after")]
        query = urlencode([*kept, ("limit", limit), ("after", str(items[-1].id))])
        headers["Link"] = f'<{request.url.path}?{query}>; rel="next"'
    return Response(list(items), headers=headers)
