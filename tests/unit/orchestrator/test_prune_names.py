"""The pruner's reading of keys: what belongs to which attempt, and what a row's name covers."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from uuid import uuid4

from fusion_core import s3_keys
from fusion_core.storage import ListedObject
from fusion_orchestrator.base_model_import import uuid7
from fusion_orchestrator.prune import grouped, is_named, parse_attempt


def test_an_attempts_folder_is_read_back() -> None:
    job_id, attempt_id = uuid4(), uuid4()
    assert parse_attempt(s3_keys.attempt(job_id, 7, attempt_id)) == (job_id, attempt_id)


def test_foreign_folders_are_nobodys() -> None:
    job_id = uuid4()
    for folder in ("jobs/x", f"jobs/{job_id}", f"jobs/{job_id}/readme", f"jobs/{job_id}/x-{uuid4()}", "jobs//"):
        assert parse_attempt(folder) is None


def test_a_name_covers_itself_and_what_lies_below_it_only() -> None:
    names = ("jobs/a/checkpoints/000000010",)
    assert is_named("jobs/a/checkpoints/000000010", names)
    assert is_named("jobs/a/checkpoints/000000010/manifest.json", names)
    assert not is_named("jobs/a/checkpoints/0000000100/manifest.json", names)
    assert not is_named("jobs/a/export/config.json", names)


async def test_neighbours_are_grouped_and_large_folders_come_in_pieces() -> None:
    async def listing() -> AsyncIterator[ListedObject]:
        for key in ("a/1/x", "a/1/y", "a/1/z", "a/2/x"):
            yield ListedObject(key, 1, datetime.now(UTC))

    groups = [(folder, len(objects)) async for folder, objects in grouped(listing(), depth=2, most=2)]
    assert groups == [("a/1", 2), ("a/1", 1), ("a/2", 1)]


def test_new_ids_are_version_7_and_sort_by_time() -> None:
    first = uuid7()
    assert first.version == 7
    assert first.variant == "specified in RFC 4122"
    assert abs((first.int >> 80) / 1000 - datetime.now(UTC).timestamp()) < 10
