"""What every answer of every port that Fusion serves by itself tells a browser."""

import httpx


def check(answer: httpx.Response) -> None:
    headers = answer.headers
    assert headers["x-content-type-options"] == "nosniff", answer.url
    assert headers["cache-control"].startswith("no-store")
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
    assert headers["referrer-policy"] == "no-referrer"
    assert "access-control-allow-origin" not in headers
    assert "server" not in headers
