"""What every answer tells a browser."""

import httpx
import pytest

from tests import security_headers


@pytest.mark.parametrize("path", ["/health", "/api/jobs", "/api/none", "/api/docs", "/api/openapi.json"])
async def test_every_answer_has_the_security_headers(http: httpx.AsyncClient, path: str) -> None:
    secure = await http.get(f"https://api{path}", headers={"Origin": "https://elsewhere.example"})
    security_headers.check(secure)
    assert secure.headers["strict-transport-security"].startswith("max-age=")
    assert "strict-transport-security" not in (await http.get(path)).headers
