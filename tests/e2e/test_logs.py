"""The logs of all processes join by job id, carry the promised fields, and hold no secret."""

import json
from typing import Any

import msgspec
import pytest
from fusion_client.storage import sha256_of
from fusion_core.storage import Storage
from fusion_core.trainer_protocol import FileEntry

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]


@pytest.fixture(scope="module")
def job_id(platform: Any) -> str:
    """A job that has been completed."""
    worker = platform.start_worker("training")
    job_id: str = platform.submit("logged")
    platform.completed(job_id)
    platform.stack.processes.stop(worker)
    return job_id


async def test_one_job_can_be_followed_through_all_logs(platform: Any, job_id: str) -> None:
    folder = platform.stack.processes.log_path("api").parent
    of_job: dict[str, list[dict[str, Any]]] = {}
    for path in folder.glob("*.log"):
        if path.stem in ("postgres", "valkey", "s3"):
            continue
        for line in path.read_text().splitlines():
            entry = json.loads(line)
            assert {"service", "event", "level", "timestamp"} <= set(entry), line
            if entry.get("job_id") == job_id:
                of_job.setdefault(entry["service"], []).append(entry)
    assert set(of_job) == {"api", "orchestrator", "worker"}
    assert all("request_id" in entry and "account_id" in entry for entry in of_job["api"])
    started = next(entry for entry in of_job["worker"] if entry["event"] == "attempt_started")
    assert (started["epoch"], started["account_id"]) == (1, of_job["api"][0]["account_id"])


@pytest.mark.usefixtures("job_id")
async def test_no_secret_is_in_any_log(platform: Any) -> None:
    known = msgspec.structs.asdict(platform.stack.secrets)
    known.pop("s3_access_key")  # names a user, and is part of every signed URL
    secrets = [platform.secret, "X-Amz-Signature=", *known.values()]
    assert all(secrets)
    assert len(secrets) >= 8
    for path in platform.stack.processes.log_path("api").parent.glob("*.log"):
        text = path.read_text(errors="replace")
        assert not any(secret in text for secret in secrets), path.name


@pytest.mark.usefixtures("job_id")
async def test_a_job_leaves_its_base_models_files_as_they_were_imported(platform: Any) -> None:
    async with Storage(platform.stack.settings()) as storage:
        prefix = f"base-models/{platform.base_model_id}/"
        stored = {item.key.removeprefix(prefix): item async for item in storage.list_prefix(prefix)}
        for path in platform.base_folder.iterdir():
            entry = FileEntry(path.name, path.stat().st_size, sha256_of(path))
            assert entry.rel in stored
            assert await storage.matches(prefix + entry.rel, entry)
