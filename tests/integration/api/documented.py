"""Every answer that a test gets is compared with the OpenAPI document: nothing undocumented passes unseen."""

import re
from functools import cache
from typing import Any

import httpx
import jsonschema_rs
from fusion_api.app import create_app
from fusion_api.openapi_document import build_document
from fusion_api.settings import ApiSettings

UNDOCUMENTED = {"/api/docs", "/api/docs/openapi.json", "/api/openapi.json"}  # the document and its page


@cache
def document() -> dict[str, Any]:
    settings = ApiSettings(database_url="postgresql://nowhere/none", s3_endpoint="", s3_access_key="", s3_secret_key="")
    return build_document(create_app(settings))


@cache
def _paths() -> list[tuple[re.Pattern[str], dict[str, Any]]]:
    """Literal paths before those with ids."""
    found = sorted(document()["paths"].items(), key=lambda item: item[0].count("{"))
    return [(re.compile(re.sub(r"\{\w+\}", r"[0-9a-fA-F-]{36}", path)), methods) for path, methods in found]


def operation_of(method: str, path: str) -> dict[str, Any] | None:
    """The document's entry; None for a path or a method that there is not."""
    for pattern, methods in _paths():
        if pattern.fullmatch(path):
            entry: dict[str, Any] | None = methods.get(method.lower())
            return entry
    return None


@cache
def _validator(operation_id: str, status: str, media_type: str) -> jsonschema_rs.Draft202012Validator:
    entry = next(
        entry
        for item in document()["paths"].values()
        for entry in item.values()
        if entry["operationId"] == operation_id
    )
    schema = entry["responses"][status]["content"][media_type]["schema"]
    return jsonschema_rs.Draft202012Validator({**schema, "components": document()["components"]}, validate_formats=True)


async def check_documented(response: httpx.Response) -> None:
    """Status, media type, headers and body are as the document says. A hook of the test's HTTP client."""
    entry = operation_of(response.request.method, response.request.url.path)
    if entry is None:
        assert response.status_code in (404, 405) or response.request.url.path in UNDOCUMENTED
        return
    name, status = entry["operationId"], str(response.status_code)
    media_type = response.headers.get("content-type", "").partition(";")[0]
    if media_type != "text/event-stream":
        await response.aread()
    documented = entry["responses"].get(status)
    assert documented, f"{name} answered {status}, which it does not declare: {response.text}"
    content = documented.get("content", {})
    if not content:
        assert not response.content
        return
    assert media_type in content, f"{name} answered {status} as {media_type}"
    assert response.headers["x-request-id"]
    if media_type != "text/event-stream":
        validator = _validator(name, status, media_type)
        errors = [f"{error.instance_path}: {error.message}" for error in validator.iter_errors(response.json())]
        assert not errors, f"{name} answered {status}; add `problems=` to its route if a code is missing: {errors}"
