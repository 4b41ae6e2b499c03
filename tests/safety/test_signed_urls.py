"""What a signed URL is good for, tried against the embedded gateway: one key, one method, its time."""

from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from urllib.parse import parse_qsl, urlencode, urlsplit

import botocore.auth
import httpx
import pytest
from fusion_core.storage import Storage

KEY = "jobs/1/export/model.safetensors"
REFUSED = (400, 403, 405)  # 400: the gateway misses something before it looks at the signature
TYPE = {"Content-Type": "application/jsonl"}


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient() as client:
        yield client


@pytest.fixture
def signed_ago(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """From now on URLs are signed as if it were so many seconds earlier."""

    def set_back(seconds: float) -> None:
        then = datetime.now(UTC).replace(tzinfo=None) - timedelta(seconds=seconds)
        monkeypatch.setattr(botocore.auth, "get_current_datetime", lambda **_: then)

    return set_back


async def test_a_url_past_its_expiry_is_refused(
    storage: Storage, client: httpx.AsyncClient, signed_ago: Callable[[float], None]
) -> None:
    await storage.put_bytes(KEY, b"mine")
    multipart = await storage.begin_multipart("tmp/a/1/large", "x")
    for seconds, refused in ((1, False), (61, True)):
        signed_ago(seconds)
        get = await storage.presign_get(KEY, 60, "a")
        put = await storage.presign_put("tmp/a/1/rows.jsonl", TYPE["Content-Type"], 60)
        part = await storage.presign_part("tmp/a/1/large", multipart, 1, 60)
        answers = [
            await client.get(get),
            await client.put(put, content=b"x", headers=TYPE),
            await client.put(part, content=b"x"),
        ]
        assert [answer.status_code for answer in answers] == [403 if refused else 200] * 3, seconds


async def test_a_url_is_good_for_its_own_key_alone(storage: Storage, client: httpx.AsyncClient) -> None:
    await storage.put_bytes(KEY, b"mine")
    url = await storage.presign_get(KEY, 60, "a")
    bucket = urlsplit(url).path.removesuffix(f"/{KEY}")
    for other in ("jobs/2/export/model.safetensors", f"{KEY}.bak", "jobs/1/export/", ""):
        if other and not other.endswith("/"):
            await storage.put_bytes(other, b"another's")
        answer = await client.get(url.replace(f"{bucket}/{KEY}", f"{bucket}/{other}"))
        assert (answer.status_code, b"another" in answer.content) == (403, False), other
    url = await storage.presign_put("tmp/a/1/rows.jsonl", TYPE["Content-Type"], 60)
    assert (await client.put(url.replace("a/1", "b/1"), content=b"x", headers=TYPE)).status_code == 403
    assert await storage.head("tmp/b/1/rows.jsonl") is None


@pytest.mark.parametrize("method", ["PUT", "DELETE", "HEAD", "POST"])
async def test_a_url_to_read_is_good_for_nothing_else(storage: Storage, client: httpx.AsyncClient, method: str) -> None:
    await storage.put_bytes(KEY, b"mine")
    url = await storage.presign_get(KEY, 60, "a")
    assert (await client.request(method, url)).status_code in REFUSED
    assert await storage.get_bytes(KEY) == b"mine"


@pytest.mark.parametrize("method", ["GET", "DELETE", "HEAD", "POST"])
async def test_a_url_to_write_is_good_for_nothing_else(
    storage: Storage, client: httpx.AsyncClient, method: str
) -> None:
    await storage.put_bytes(KEY, b"mine")
    url = await storage.presign_put(KEY, TYPE["Content-Type"], 60)
    assert (await client.request(method, url, headers=TYPE)).status_code in REFUSED
    assert await storage.get_bytes(KEY) == b"mine"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("X-Amz-Expires", "604800"),
        ("X-Amz-Date", "in five minutes"),
        ("X-Amz-Signature", "0" * 64),
        ("X-Amz-SignedHeaders", "host;range"),
        ("X-Amz-Credential", "nobody/20260101/us-east-1/s3/aws4_request"),
        ("response-content-disposition", 'inline; filename="a.html"'),
        ("response-content-type", "text/html"),
        ("versionId", "null"),
    ],
)
async def test_a_changed_or_added_word_of_the_query_is_refused(
    storage: Storage, client: httpx.AsyncClient, name: str, value: str
) -> None:
    await storage.put_bytes(KEY, b"mine")
    url = await storage.presign_get(KEY, 60, "a")
    if value == "in five minutes":  # not of the moment of collection, which differs between pytest's processes
        value = (datetime.now(UTC) + timedelta(minutes=5)).strftime("%Y%m%dT%H%M%SZ")
    query = dict(parse_qsl(urlsplit(url).query)) | {name: value}
    answer = await client.get(f"{url.split('?')[0]}?{urlencode(query)}")
    assert answer.status_code in REFUSED


async def test_a_part_is_signed_for_its_number_and_its_upload(storage: Storage, client: httpx.AsyncClient) -> None:
    mine, other = [await storage.begin_multipart(f"tmp/a/{name}/large", "x") for name in ("1", "2")]
    url = await storage.presign_part("tmp/a/1/large", mine, 1, 60)
    for stretched in (url.replace("partNumber=1", "partNumber=2"), url.replace(mine, other)):
        assert stretched != url
        assert (await client.put(stretched, content=b"x")).status_code == 403
    assert await storage.list_parts("tmp/a/1/large", mine) == []
