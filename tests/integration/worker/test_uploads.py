"""S3 that takes connections and never answers: a checkpoint is skipped, an export tried again, a drain on time."""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import msgspec
import pytest
from fusion_core import storage
from fusion_core.settings import CommonSettings
from fusion_core.states import CRASH_BUDGET
from fusion_core.storage import Storage
from fusion_worker import uploads

from tests.faults.proxy import PASS, Fault, Kind, Proxy

from .conftest import Site, Start

SILENT = Fault(Kind.HALF_OPEN)


@pytest.fixture
def proxy(common_settings: CommonSettings) -> Iterator[Proxy]:
    with Proxy() as proxy:
        proxy.link("s3", urlsplit(common_settings.s3_endpoint).port or 80)
        yield proxy


@pytest.fixture
def endpoint(proxy: Proxy) -> str:
    return f"http://127.0.0.1:{proxy.links['s3'].port}"


@pytest.fixture
def silence(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """From now on S3 falls silent at the start of each upload below a key of this kind, and only then."""
    monkeypatch.setattr(uploads, "FIRST_PAUSE_S", 0.05)
    upload_file = Storage.upload_file

    def fall_silent(kind: str) -> None:
        async def upload(self: Storage, path: Path, key: str) -> None:
            await asyncio.to_thread(proxy.set, "s3", SILENT if f"/{kind}/" in key else PASS)
            await upload_file(self, path, key)

        monkeypatch.setattr(Storage, "upload_file", upload)

    return fall_silent


async def test_a_checkpoint_whose_upload_hangs_is_skipped_with_a_notice_and_the_run_goes_on(
    site: Site,
    start_daemon: Start,
    endpoint: str,
    silence: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(storage, "PART_DEADLINE_S", 0.5)
    silence("checkpoints")
    job_id = await site.train()
    await start_daemon(s3_endpoint=endpoint)
    assert (await site.reaches(job_id, "completed")).retries == 0
    told = [data for kind, data in await site.events(job_id) if data.get("code") == "checkpoint_upload_failed"]
    assert [(data["step"], data["checkpoint_step"], data["checkpoint_age_s"]) for data in told] == [(2, 0, None)]
    assert "TimeoutError" in str(told[0]["message"])
    assert "the newest checkpoint: none" in str(told[0]["message"])


async def test_an_export_whose_upload_hangs_is_a_crash_that_is_tried_again_until_s3_answers(
    site: Site,
    start_daemon: Start,
    proxy: Proxy,
    endpoint: str,
    silence: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(storage, "PART_DEADLINE_S", 0.5)
    silence("export")
    job_id = await site.train()
    await start_daemon(s3_endpoint=endpoint)
    for crash in range(1, CRASH_BUDGET + 1):
        interrupted = await site.has_event(job_id, "interrupted", crash)
        assert (interrupted[-1]["code"], interrupted[-1]["resume_step"]) == ("storage_unavailable", 2)
        if crash == CRASH_BUDGET:
            silence("nothing")
        await asyncio.to_thread(proxy.heal)
        await site.be_due(job_id)
    assert (await site.reaches(job_id, "completed")).retries == CRASH_BUDGET


async def test_a_drain_is_on_time_although_an_upload_hangs(
    site: Site, start_daemon: Start, endpoint: str, silence: Callable[[str], None]
) -> None:
    silence("checkpoints")
    job_id = await site.train("sleep")
    daemon = await start_daemon(s3_endpoint=endpoint, drain_grace_s=1)
    await site.has_event(job_id, "metrics", 2)
    daemon.drain()
    assert await site.has_event(job_id, "interrupted") == [{"reason": "drain", "resume_step": 0}]


async def test_a_worker_that_cannot_reach_s3_takes_no_second_job(
    site: Site, start_daemon: Start, proxy: Proxy, endpoint: str
) -> None:
    await asyncio.to_thread(proxy.set, "s3", Fault(Kind.CUT))
    first = await site.train()
    await start_daemon(s3_endpoint=endpoint)
    assert (await site.has_event(first, "interrupted"))[0]["code"] == "storage_unavailable"
    second = await site.train()
    await site.be_due(first)
    await asyncio.sleep(1)  # several looks
    assert [(await site.job(job_id)).state for job_id in (first, second)] == ["queued", "queued"]
    assert await site.pool.fetchval("select failures from workers") == 0
    await asyncio.to_thread(proxy.heal)
    for job_id in (first, second):
        await site.reaches(job_id, "completed")


async def test_a_large_file_goes_up_in_parts_and_reads_back_the_same(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "PART_BYTES", 5 * 2**20)
    content = bytes(range(256)) * (45 * 2**10)  # 11.25 MiB: two whole parts and a third
    (tmp_path / "large").write_bytes(content)
    await site.storage.upload_file(tmp_path / "large", "large")
    assert await site.storage.get_bytes("large") == content


@pytest.mark.usefixtures("site")
async def test_a_part_that_hangs_ends_the_upload(
    common_settings: CommonSettings,
    proxy: Proxy,
    endpoint: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(storage, "PART_BYTES", 5 * 2**20)
    monkeypatch.setattr(storage, "PART_DEADLINE_S", 0.5)
    monkeypatch.setattr(storage, "SMALL_DEADLINE_S", 2.0)
    (tmp_path / "large").write_bytes(bytes(11 * 2**20))
    before = asyncio.all_tasks()
    begin = Storage.begin_multipart

    async def begin_multipart(self: Storage, key: str, content_type: str) -> str:
        multipart_id = await begin(self, key, content_type)
        await asyncio.to_thread(proxy.set, "s3", SILENT)
        return multipart_id

    monkeypatch.setattr(Storage, "begin_multipart", begin_multipart)
    async with Storage(msgspec.structs.replace(common_settings, s3_endpoint=endpoint)) as through_proxy:
        with pytest.raises(ExceptionGroup) as raised:
            await through_proxy.upload_file(tmp_path / "large", "large")
        assert {type(error) for error in raised.value.exceptions} == {TimeoutError}
        assert asyncio.all_tasks() - before == set()
