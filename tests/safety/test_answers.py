"""What every answer tells a browser, and what signed URLs are good for."""

from typing import Any

import httpx
import pytest
from fusion_core.storage import Storage

from tests import security_headers


@pytest.mark.parametrize("path", ["/health", "/api/jobs", "/api/none", "/api/docs", "/api/openapi.json"])
async def test_every_answer_has_the_security_headers(http: httpx.AsyncClient, path: str) -> None:
    secure = await http.get(f"https://api{path}", headers={"Origin": "https://elsewhere.example"})
    security_headers.check(secure)
    assert secure.headers["strict-transport-security"].startswith("max-age=")
    assert "strict-transport-security" not in (await http.get(path)).headers


async def test_a_signed_put_is_good_for_one_key_and_one_method(storage: Storage) -> None:
    url = await storage.presign_put("tmp/a/1/rows.jsonl", "application/jsonl", 60)
    kind = {"Content-Type": "application/jsonl"}
    async with httpx.AsyncClient() as client:
        answers: dict[str, Any] = {
            "other key": await client.put(url.replace("/rows.jsonl", "/other.jsonl"), content=b"x", headers=kind),
            "delete": await client.delete(url),
            "get": await client.get(url),
            "tampered": await client.put(
                url.replace("X-Amz-Expires=60", "X-Amz-Expires=6000"), content=b"x", headers=kind
            ),
        }
        # 400: a signed header is missing, which the store sees first
        assert {name for name, answer in answers.items() if answer.status_code not in (400, 403)} == set()
        assert await storage.head("tmp/a/1/rows.jsonl") is None
        assert (await client.put(url, content=b"x", headers=kind)).status_code == 200


async def test_a_signed_get_is_good_for_reading_one_key(storage: Storage) -> None:
    await storage.put_bytes("jobs/1/export/a", b"mine")
    await storage.put_bytes("jobs/2/export/a", b"another's")
    url = await storage.presign_get("jobs/1/export/a", 60, "a")
    async with httpx.AsyncClient() as client:
        assert (await client.get(url)).content == b"mine"
        refused = [
            await client.get(url.replace("jobs/1", "jobs/2")),
            await client.put(url, content=b"x"),
            await client.delete(url),
        ]
        assert [answer.status_code for answer in refused] == [403, 403, 403]
