"""The bucket policies allow what the services do, and no more of what would hurt.

The embedded S3 gateway reads them, but takes users only from a client that encrypts as MinIO's do. So they are tried by
the rules of the policy language: an explicit deny wins, and what no statement allows is denied.
"""

import hashlib
import json
from collections.abc import AsyncIterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import httpx
import pytest
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from fusion_core.storage import Storage
from fusion_local.stack import Stack

from tests.integration.worker.conftest import Site, Start

POLICIES = Path(__file__).parents[2] / "deploy/policies"
BUCKET = "arn:aws:s3:::${bucket}"
# The action that each operation of the S3 API needs (AWS, "Actions, resources and condition keys for Amazon S3").
ACTIONS = {
    "GetObject": "s3:GetObject", "HeadObject": "s3:GetObject", "PutObject": "s3:PutObject",
    "CreateMultipartUpload": "s3:PutObject", "UploadPart": "s3:PutObject", "CompleteMultipartUpload": "s3:PutObject",
    "AbortMultipartUpload": "s3:AbortMultipartUpload", "ListParts": "s3:ListMultipartUploadParts",
    "DeleteObject": "s3:DeleteObject", "HeadBucket": "s3:ListBucket", "ListObjectsV2": "s3:ListBucket",
    "ListMultipartUploads": "s3:ListBucketMultipartUploads", "CreateBucket": "s3:CreateBucket",
}  # fmt: skip
PUBLISHED = "jobs/7/1-a/export/model.safetensors"


def allows(service: str, action: str, key: str | None) -> bool:
    resource = BUCKET if key is None else f"{BUCKET}/{key}"
    statements = json.loads((POLICIES / f"{service}.json").read_text())["Statement"]
    effects = {
        one["Effect"]
        for one in statements
        if any(fnmatchcase(action, pattern) for pattern in one["Action"])
        and any(fnmatchcase(resource, pattern.replace("${bucket}", "[$]{bucket}")) for pattern in one["Resource"])
    }
    return effects == {"Allow"}


@pytest.fixture
async def calls(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[set[tuple[str, str | None]]]:
    """(operation, key) of every call that any Storage sends."""
    seen: set[tuple[str, str | None]] = set()
    enter = Storage.__aenter__

    async def recorded(storage: Storage) -> Storage:
        opened = await enter(storage)

        def note(model: Any, params: dict[str, Any], **_: object) -> None:
            parts = unquote(urlsplit(params["url"]).path).lstrip("/").split("/", 1)
            seen.add((model.name, parts[1] if len(parts) > 1 and parts[1] else None))

        opened._client.meta.events.register("before-call.s3", note)
        return opened

    monkeypatch.setattr(Storage, "__aenter__", recorded)
    yield seen


async def test_a_workers_policy_allows_what_its_jobs_do(
    calls: set[tuple[str, str | None]], site: Site, start_daemon: Start
) -> None:
    calls.clear()  # those of the test's own storage so far
    job_id = await site.train()
    prepared = set(calls)
    await start_daemon()
    await site.reaches(job_id, "completed")
    done = calls - prepared
    assert {operation for operation, _ in done} >= {"GetObject", "PutObject"}
    assert [call for call in sorted(done, key=str) if not allows("worker", ACTIONS[call[0]], call[1])] == []


@pytest.mark.parametrize("service", ["worker", "api"])
@pytest.mark.parametrize("key", [PUBLISHED, "base-models/1/model.safetensors", "jobs/7/1-a/checkpoints/000000001/x"])
def test_only_the_orchestrator_deletes_what_is_published(service: str, key: str) -> None:
    assert not allows(service, "s3:DeleteObject", key)
    assert allows("orchestrator", "s3:DeleteObject", key)


@pytest.mark.parametrize("service", ["worker", "api", "orchestrator", None])
async def test_the_embedded_gateway_takes_each_policy(stack: Stack, service: str | None) -> None:
    """As `mc admin policy create` sends it; None: what is no policy is refused."""
    policy = b"{}" if service is None else (POLICIES / f"{service}.json").read_bytes().replace(b"${bucket}", b"fusion")
    secrets = Credentials(stack.secrets.s3_access_key, stack.secrets.s3_secret_key)
    address = f"{stack.s3_endpoint}/minio/admin/v3/add-canned-policy?name={service or 'none'}"
    request = AWSRequest("PUT", address, {"X-Amz-Content-Sha256": hashlib.sha256(policy).hexdigest()}, policy)
    S3SigV4Auth(secrets, "s3", "us-east-1").add_auth(request)
    async with httpx.AsyncClient() as client:
        answer = await client.put(address, headers=dict(request.headers), content=policy)
    assert answer.is_success == (service is not None), answer.text


def test_what_else_nobody_may() -> None:
    for service in ("worker", "api", "orchestrator"):
        for action in ("s3:DeleteBucket", "s3:PutBucketPolicy", "s3:CreateBucket"):
            assert not allows(service, action, None), (service, action)
        assert not allows(service, "s3:GetObject", "other/secret"), service
    assert not allows("worker", "s3:PutObject", "base-models/1/model.safetensors")
    assert not allows("worker", "s3:DeleteObject", "tmp/account/upload/rows.jsonl")
    assert not allows("api", "s3:PutObject", PUBLISHED)


def test_what_the_api_signs_and_cleans_is_allowed() -> None:
    upload = "tmp/account/upload/rows.jsonl"
    for operation in ("PutObject", "CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload", "ListParts",
                      "AbortMultipartUpload", "HeadObject", "DeleteObject"):  # fmt: skip
        assert allows("api", ACTIONS[operation], upload), operation
    assert allows("api", "s3:GetObject", PUBLISHED)


def test_a_workers_code_deletes_nothing() -> None:
    sources = (Path(__file__).parents[2] / "services/worker/fusion_worker").glob("*.py")
    assert [path.name for path in sources if "storage.delete(" in path.read_text()] == []
