"""S3 that falls silent costs a time-out and another connection, not the deadline of the whole upload."""

import asyncio
from pathlib import Path

import msgspec
import pytest
from fusion_core import storage as storage_module
from fusion_core.settings import CommonSettings
from fusion_core.storage import Storage
from fusion_local.stack import Stack

from tests.faults.proxy import PASS, Fault, Kind, Proxy


async def test_an_upload_outlives_a_connection_that_fell_silent(
    storage: Storage, common_settings: CommonSettings, stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage_module, "READ_TIMEOUT_S", 0.5)
    (tmp_path / "file").write_bytes(b"w" * 100_000)
    with Proxy() as proxy:
        port = proxy.link("s3", stack.s3_port)
        through = msgspec.structs.replace(common_settings, s3_endpoint=f"http://127.0.0.1:{port}")
        async with Storage(through) as client:
            await client.put_bytes("first", b"opens a connection")
            proxy.set("s3", Fault(Kind.HALF_OPEN))
            uploading = asyncio.create_task(client.upload_file(tmp_path / "file", "second"))
            await asyncio.sleep(0.2)
            proxy.set("s3", PASS)
            async with asyncio.timeout(30):  # without a time-out of its own it would wait for its deadline of minutes
                await uploading
    assert await storage.get_bytes("second") == b"w" * 100_000
