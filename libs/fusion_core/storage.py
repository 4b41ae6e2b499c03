"""S3: every object Fusion keeps. Bytes are verified by our own hashes; nothing relies on conditional writes."""

import asyncio
import contextlib
import hashlib
import os
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Self

import msgspec

from fusion_core.settings import CommonSettings
from fusion_core.trainer_protocol import FileEntry

CHUNK_BYTES = 4 * 1024 * 1024
FILE_DEADLINE_S = 3600.0
SMALL_DEADLINE_S = 60.0
READ_TIMEOUT_S = 20.0  # S3 that says nothing for so long is asked again, over another connection
PART_BYTES = 16 * 1024 * 1024
PART_DEADLINE_S = 120.0  # 140 kB/s: slower is as good as hanging
MOST_PARTS = 10_000  # S3's own limit
_PARALLEL_PARTS = 4


_PASSING = frozenset({"SlowDown", "Throttling", "RequestTimeout", "RequestTimeTooSkewed"})  # refusals that pass


class ObjectCorruptError(Exception):
    """An object's size or SHA-256 is not what its manifest says."""


class ObjectMissingError(Exception):
    """No object of this key."""


class ObjectChangedError(Exception):
    """An object is no longer the one that was pinned by its ETag."""


def is_outage(error: BaseException) -> bool:
    """Is it S3, or the way to it, that fails, and not what was asked of it? A clock that S3 refuses is such a fault."""
    import aiohttp
    from botocore.exceptions import BotoCoreError, ClientError

    if isinstance(error, ClientError):
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        return status >= 500 or error.response.get("Error", {}).get("Code") in _PASSING
    return isinstance(error, BotoCoreError | aiohttp.ClientError | TimeoutError | ConnectionError)


class ObjectHead(msgspec.Struct, frozen=True):
    size: int
    etag: str


class UploadedPart(msgspec.Struct, frozen=True):
    """A part of an upload that has arrived; parts are numbered from 1."""

    number: int
    size: int
    etag: str


class ListedObject(msgspec.Struct, frozen=True):
    key: str
    size: int
    modified_at: datetime


class Storage:
    """One bucket. Use as an async context manager; safe for concurrent calls."""

    def __init__(self, settings: CommonSettings) -> None:
        self._settings = settings
        self._stack = AsyncExitStack()
        self._client: Any = None
        self._public: Any = None

    async def __aenter__(self) -> Self:
        # aioboto3 takes two seconds of CPU to import: only a process that talks to S3 pays.
        import aioboto3
        from botocore.config import Config
        from botocore.handlers import add_expect_header

        session = aioboto3.Session(
            aws_access_key_id=self._settings.s3_access_key,
            aws_secret_access_key=self._settings.s3_secret_key,
            region_name=self._settings.s3_region,
        )
        config = Config(
            signature_version="s3v4",
            s3={"addressing_style": "path"},
            connect_timeout=5,
            read_timeout=READ_TIMEOUT_S,
            retries={"max_attempts": 4, "mode": "standard"},
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        )
        internal = self._settings.s3_endpoint
        public = self._settings.s3_public_endpoint or internal
        self._client = await self._stack.enter_async_context(session.client("s3", endpoint_url=internal, config=config))
        self._public = self._client
        if public != internal:
            client = session.client("s3", endpoint_url=public, config=config)
            self._public = await self._stack.enter_async_context(client)
        # aiohttp waits for the answer to `Expect: 100-continue` without any time-out: a silent S3 would hold an upload.
        self._client.meta.events.unregister("before-call.s3", add_expect_header)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    @property
    def _bucket(self) -> str:
        return self._settings.s3_bucket

    async def ensure_bucket(self) -> None:
        """Create the bucket if it is not there."""
        try:
            await self._client.head_bucket(Bucket=self._bucket)
        except self._client.exceptions.ClientError:
            await self._client.create_bucket(Bucket=self._bucket)

    async def check(self) -> None:
        """Raises if the bucket cannot be reached within five seconds."""
        async with asyncio.timeout(5):
            await self._client.head_bucket(Bucket=self._bucket)

    async def put_bytes(self, key: str, content: bytes) -> None:
        async with asyncio.timeout(SMALL_DEADLINE_S):
            await self._client.put_object(Bucket=self._bucket, Key=key, Body=content)

    async def get_bytes(self, key: str, limit: int = 16 * 1024 * 1024) -> bytes:
        """The whole object. Raises ObjectMissingError, or ObjectCorruptError when it is larger than `limit`."""
        parts = []
        size = 0
        async with asyncio.timeout(SMALL_DEADLINE_S):
            async for chunk in self.open(key):
                size += len(chunk)
                if size > limit:
                    raise ObjectCorruptError(f"{key} is larger than {limit} bytes")
                parts.append(chunk)
        return b"".join(parts)

    async def upload_file(self, path: Path, key: str) -> None:
        """Upload one file, in parts where it is large, each within PART_DEADLINE_S: a file may take as long as it has
        parts, and a connection that hangs is noticed at once. Raises TimeoutError."""
        size = (await asyncio.to_thread(path.stat)).st_size
        if size <= PART_BYTES:
            async with asyncio.timeout(PART_DEADLINE_S):
                body = await asyncio.to_thread(path.read_bytes)
                await self._client.put_object(Bucket=self._bucket, Key=key, Body=body)
            return
        multipart_id = await self.begin_multipart(key, "application/octet-stream")
        try:
            parts = await self._upload_parts(path, size, key, multipart_id)
            await self.complete_multipart(key, multipart_id, parts)
        except Exception:  # what a cancelled upload leaves is pruned
            with contextlib.suppress(Exception):
                await self.abort_multipart(key, multipart_id)
            raise

    async def _upload_parts(self, path: Path, size: int, key: str, multipart_id: str) -> list[UploadedPart]:
        """Raises an ExceptionGroup of TimeoutError and of what S3 answers."""
        part_bytes = max(PART_BYTES, -(-size // MOST_PARTS))
        slots = asyncio.Semaphore(_PARALLEL_PARTS)

        async def upload(number: int) -> UploadedPart:
            async with slots, asyncio.timeout(PART_DEADLINE_S):
                body = await asyncio.to_thread(_read_part, path, (number - 1) * part_bytes, part_bytes)
                answer = await self._client.upload_part(
                    Bucket=self._bucket, Key=key, UploadId=multipart_id, PartNumber=number, Body=body
                )
                return UploadedPart(number, len(body), answer["ETag"])

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(upload(number)) for number in range(1, -(-size // part_bytes) + 1)]
        return [task.result() for task in tasks]

    async def download_file(
        self,
        key: str,
        path: Path,
        expected: FileEntry | None = None,
        deadline_s: float = FILE_DEADLINE_S,
        etag: str | None = None,
    ) -> None:
        """Stream an object to `path`, complete or absent; with `etag`, only the object of that ETag.

        Raises ObjectMissingError, ObjectChangedError, ObjectCorruptError when size or hash differ from `expected`,
        OSError, TimeoutError.
        """
        partial = path.with_name(f".{path.name}.part")
        digest = hashlib.sha256()
        size = 0
        try:
            async with asyncio.timeout(deadline_s):
                with partial.open("wb") as file:
                    async for chunk in self.open(key, etag):
                        digest.update(chunk)
                        size += len(chunk)
                        await asyncio.to_thread(file.write, chunk)
                    file.flush()
                    await asyncio.to_thread(os.fsync, file.fileno())
            if expected is not None and (size, digest.hexdigest()) != (expected.size, expected.sha256):
                raise ObjectCorruptError(f"{key}: {size} bytes with another SHA-256 than its manifest says")
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)

    async def head(self, key: str) -> ObjectHead | None:
        try:
            async with asyncio.timeout(SMALL_DEADLINE_S):
                answer = await self._client.head_object(Bucket=self._bucket, Key=key)
        except self._client.exceptions.ClientError as error:
            if error.response["ResponseMetadata"]["HTTPStatusCode"] == 404:
                return None
            raise
        return ObjectHead(answer["ContentLength"], answer["ETag"])

    async def open(self, key: str, etag: str | None = None) -> AsyncIterator[bytes]:
        """The object's bytes in chunks, all of one version; with `etag`, of that version or of none.

        Raises ObjectMissingError, ObjectChangedError.
        """
        pinned = {} if etag is None else {"IfMatch": etag}
        try:
            answer = await self._client.get_object(Bucket=self._bucket, Key=key, **pinned)
        except self._client.exceptions.NoSuchKey as error:
            raise ObjectMissingError(key) from error
        except self._client.exceptions.ClientError as error:
            if error.response["ResponseMetadata"]["HTTPStatusCode"] == 412:
                raise ObjectChangedError(key) from error
            raise
        if etag is not None and answer["ETag"] != etag:  # not every S3 knows conditional reads
            answer["Body"].close()
            raise ObjectChangedError(key)
        async with answer["Body"] as body:
            async for chunk in body.content.iter_chunked(CHUNK_BYTES):
                yield chunk

    async def list_prefix(self, prefix: str) -> AsyncIterator[ListedObject]:
        paginator = self._client.get_paginator("list_objects_v2")
        async for page in paginator.paginate(Bucket=self._bucket, Prefix=prefix):
            for item in page.get("Contents", []):
                yield ListedObject(item["Key"], item["Size"], item["LastModified"])

    async def delete(self, keys: Iterable[str]) -> None:
        for key in keys:
            async with asyncio.timeout(SMALL_DEADLINE_S):
                await self._client.delete_object(Bucket=self._bucket, Key=key)

    async def presign_put(self, key: str, content_type: str, expires_s: int, size: int | None = None) -> str:
        """A URL that allows PUTs of this key with this content type, and of this size if one is given.

        No request is made.
        """
        params = {"Bucket": self._bucket, "Key": key, "ContentType": content_type}
        length = {} if size is None else {"ContentLength": size}
        url: str = await self._public.generate_presigned_url("put_object", Params=params | length, ExpiresIn=expires_s)
        return url

    async def begin_multipart(self, key: str, content_type: str) -> str:
        """Begin an upload in parts; answers S3's name for it."""
        async with asyncio.timeout(SMALL_DEADLINE_S):
            answer = await self._client.create_multipart_upload(Bucket=self._bucket, Key=key, ContentType=content_type)
        name: str = answer["UploadId"]
        return name

    async def presign_part(self, key: str, multipart_id: str, number: int, expires_s: int) -> str:
        """A URL that allows PUTs of this one part. No request is made."""
        url: str = await self._public.generate_presigned_url(
            "upload_part",
            Params={"Bucket": self._bucket, "Key": key, "UploadId": multipart_id, "PartNumber": number},
            ExpiresIn=expires_s,
        )
        return url

    async def list_parts(self, key: str, multipart_id: str) -> list[UploadedPart] | None:
        """The parts that have arrived, by number; None when the upload was completed, aborted or never begun."""
        parts = []
        paginator = self._client.get_paginator("list_parts")
        try:
            async with asyncio.timeout(SMALL_DEADLINE_S):
                async for page in paginator.paginate(Bucket=self._bucket, Key=key, UploadId=multipart_id):
                    parts += [UploadedPart(p["PartNumber"], p["Size"], p["ETag"]) for p in page.get("Parts", [])]
        except self._client.exceptions.ClientError as error:
            if error.response["ResponseMetadata"]["HTTPStatusCode"] == 404:
                return None
            raise
        return parts

    async def complete_multipart(self, key: str, multipart_id: str, parts: list[UploadedPart]) -> None:
        """Make the parts one object."""
        listed = [{"PartNumber": part.number, "ETag": part.etag} for part in parts]
        async with asyncio.timeout(SMALL_DEADLINE_S):
            await self._client.complete_multipart_upload(
                Bucket=self._bucket, Key=key, UploadId=multipart_id, MultipartUpload={"Parts": listed}
            )

    async def abort_multipart(self, key: str, multipart_id: str) -> None:
        """Forget an upload in parts; one that is no longer open is left as it is."""
        try:
            async with asyncio.timeout(SMALL_DEADLINE_S):
                await self._client.abort_multipart_upload(Bucket=self._bucket, Key=key, UploadId=multipart_id)
        except self._client.exceptions.ClientError as error:
            if error.response["ResponseMetadata"]["HTTPStatusCode"] != 404:
                raise

    async def presign_get(self, key: str, expires_s: int, filename: str) -> str:
        """A URL that allows reading this key, offered to browsers as `filename`."""
        disposition = f'attachment; filename="{filename}"'
        url: str = await self._public.generate_presigned_url(
            "get_object",
            Params={"Bucket": self._bucket, "Key": key, "ResponseContentDisposition": disposition},
            ExpiresIn=expires_s,
        )
        return url

    async def abort_stale_multipart(self, older_than: timedelta) -> int:
        """Abort multipart uploads begun before that; answers how many."""
        before = datetime.now(UTC) - older_than
        aborted = 0
        answer = await self._client.list_multipart_uploads(Bucket=self._bucket)
        for upload in answer.get("Uploads", []):
            if upload["Initiated"] < before:
                await self._client.abort_multipart_upload(
                    Bucket=self._bucket, Key=upload["Key"], UploadId=upload["UploadId"]
                )
                aborted += 1
        return aborted

    async def matches(self, key: str, entry: FileEntry) -> bool:
        """Read an object back: are its size and SHA-256 those of `entry`?"""
        digest = hashlib.sha256()
        size = 0
        async with asyncio.timeout(FILE_DEADLINE_S):
            async for chunk in self.open(key):
                digest.update(chunk)
                size += len(chunk)
        return (size, digest.hexdigest()) == (entry.size, entry.sha256)


def _read_part(path: Path, offset: int, length: int) -> bytes:
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(length)
