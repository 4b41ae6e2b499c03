"""Files to and from object storage over presigned URLs. The API key never goes here."""

import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, as_completed, wait
from pathlib import Path, PurePosixPath
from typing import IO

import httpx

from fusion_client.dataset_models import SignedPart
from fusion_client.errors import ChecksumError, TransferError, UnsafePathError
from fusion_client.models import DownloadManifest, ManifestFile
from fusion_client.transport import Retries, is_retryable

Progress = Callable[[int, int], None]  # (bytes done, bytes in all)

_CHUNK_BYTES = 1024 * 1024
_PARTS_AT_ONCE = 4
_TIMEOUT = httpx.Timeout(60.0, connect=5.0)


def put_file(url: str, path: Path, content_type: str, retries: Retries, on_progress: Progress | None = None) -> None:
    """Stream a file to a presigned URL, from the start again when the connection breaks. Raises TransferError."""
    size = path.stat().st_size

    def count(done: int) -> None:
        if on_progress is not None:
            on_progress(done, size)

    with httpx.Client(timeout=_TIMEOUT, headers={"Content-Type": content_type}) as http:
        _put(http, url, path, 0, size, retries, count)


def put_parts(
    parts: Sequence[SignedPart], path: Path, part_size: int, retries: Retries, on_part: Callable[[int], None]
) -> None:
    """PUT parts of a file to their URLs, a few at a time, each again when its connection breaks.

    `on_part` is told the size of each one that has arrived. Raises TransferError.
    """
    with httpx.Client(timeout=_TIMEOUT) as http, ThreadPoolExecutor(_PARTS_AT_ONCE) as pool:
        sent = {
            pool.submit(_put, http, part.url, path, (part.part_number - 1) * part_size, part.size, retries): part.size
            for part in parts
        }
        try:
            for future in as_completed(sent):
                future.result()
                on_part(sent[future])
        finally:
            pool.shutdown(cancel_futures=True)


def _put(
    http: httpx.Client,
    url: str,
    path: Path,
    start: int,
    size: int,
    retries: Retries,
    count: Callable[[int], None] = lambda _: None,
) -> None:
    """PUT `size` bytes of a file from `start` on. Raises TransferError."""
    for attempt in range(1, retries.attempts + 1):
        try:
            with path.open("rb") as file:
                file.seek(start)
                response = http.put(url, content=_read(file, size, count), headers={"Content-Length": str(size)})
            if response.is_success:
                return
            failure = _refusal(response)
            repeat = is_retryable(response) or response.status_code == 500
        except httpx.TransportError as error:
            failure, repeat = str(error) or type(error).__name__, True
        if not repeat or attempt == retries.attempts:
            raise TransferError(f"{path.name} was not uploaded: {failure}")
        time.sleep(retries.wait_s(attempt))


def _read(file: IO[bytes], size: int, count: Callable[[int], None]) -> Iterator[bytes]:
    done = 0
    while chunk := file.read(min(_CHUNK_BYTES, size - done)):
        yield chunk
        done += len(chunk)
        count(done)


def _refusal(response: httpx.Response) -> str:
    if response.status_code == 403:
        return "storage answered 403: the URL has expired or was signed for something else; ask for a new one"
    return f"storage answered {response.status_code}"


def download(
    manifest: DownloadManifest,
    destination: Path,
    *,
    refresh: Callable[[], DownloadManifest],
    parallel: int,
    retries: Retries,
    on_progress: Progress | None = None,
) -> None:
    """Fetch every file of a manifest into `destination`, `parallel` at a time.

    A file that is there already and matches its checksum is not fetched again; each other one is written beside its
    place and renamed once its size and SHA-256 are right. `refresh` asks for new URLs when the old ones have expired.
    Raises UnsafePathError before anything is written, ChecksumError, or TransferError; then what had been verified
    stays, so that another call goes on from there.
    """
    targets = [(file, safe_path(destination, file.rel)) for file in manifest.files]
    identity = {"Accept-Encoding": "identity"}  # checksums are of the bytes as stored
    with httpx.Client(timeout=_TIMEOUT, headers=identity) as http, ThreadPoolExecutor(parallel) as pool:
        fetcher = _Fetcher(http, manifest, refresh, retries, on_progress)
        futures = [pool.submit(fetcher.fetch, file, path) for file, path in targets]
        try:
            done, _ = wait(futures, return_when=FIRST_EXCEPTION)
        finally:
            fetcher.abandoned.set()  # no effect where all are done
            pool.shutdown(cancel_futures=True)
        for future in done:
            future.result()


def safe_path(destination: Path, rel: str) -> Path:
    """Where a file of a manifest goes. Raises UnsafePathError for anything that would leave `destination`."""
    parts = rel.split("/")
    if any(part in ("", ".", "..") for part in parts) or any(character in rel for character in "\\:\0"):
        raise UnsafePathError(f"the manifest names {rel!r}, which is not a plain relative path; nothing was written")
    path = destination.joinpath(*PurePosixPath(rel).parts)
    if not path.resolve().is_relative_to(destination.resolve()):
        raise UnsafePathError(f"{rel!r} leads out of {destination} through a link; nothing was written")
    return path


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class _AbandonedError(TransferError):
    """Another file of the same download failed."""


class _Fetcher:
    """What the threads of one download share."""

    def __init__(
        self,
        http: httpx.Client,
        manifest: DownloadManifest,
        refresh: Callable[[], DownloadManifest],
        retries: Retries,
        on_progress: Progress | None,
    ) -> None:
        self._http = http
        self._refresh = refresh
        self._retries = retries
        self._on_progress = on_progress
        self._size = manifest.size
        self._done = 0
        self._urls = {file.rel: file.url for file in manifest.files}
        self._lock = threading.Lock()
        self.abandoned = threading.Event()

    def fetch(self, file: ManifestFile, path: Path) -> None:
        if path.is_file() and path.stat().st_size == file.size and sha256_of(path) == file.sha256:
            self._count(file.size)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(path.name + ".part")
        try:
            self._fetch_part(file, part)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)

    def _fetch_part(self, file: ManifestFile, part: Path) -> None:
        """Fetch until a whole body has come. Raises TransferError or ChecksumError."""
        for attempt in range(1, self._retries.attempts + 1):
            url = self._urls[file.rel]
            try:
                with self._http.stream("GET", url) as response:
                    if response.is_success:
                        self._write(file, response, part)
                        return
                    failure = _refusal(response)
                    repeat = is_retryable(response) or response.status_code in (403, 500)
            except httpx.TransportError as error:
                failure, repeat, response = str(error) or type(error).__name__, True, None
            if not repeat or attempt == self._retries.attempts:
                raise TransferError(f"{file.rel} was not downloaded: {failure}")
            if response is not None and response.status_code == 403:
                self._renew(url, file.rel)
            if self.abandoned.wait(self._retries.wait_s(attempt)):
                raise _AbandonedError(file.rel)

    def _write(self, file: ManifestFile, response: httpx.Response, part: Path) -> None:
        digest, written = hashlib.sha256(), 0
        try:
            with part.open("wb") as output:
                for chunk in response.iter_raw(_CHUNK_BYTES):
                    written += len(chunk)
                    if written > file.size or self.abandoned.is_set():
                        break
                    output.write(chunk)
                    digest.update(chunk)
                    self._count(len(chunk))
                output.flush()
                os.fsync(output.fileno())
            if self.abandoned.is_set():
                raise _AbandonedError(file.rel)
            if written != file.size or digest.hexdigest() != file.sha256:
                raise ChecksumError(f"{file.rel}: what came is not what the manifest promises; download it again")
        except BaseException:
            self._count(-min(written, file.size))
            raise

    def _renew(self, expired: str, rel: str) -> None:
        """Ask for new URLs, once however many threads saw the old ones expire. Raises ApiError."""
        with self._lock:
            if self._urls[rel] == expired:
                self._urls |= {file.rel: file.url for file in self._refresh().files}

    def _count(self, size: int) -> None:
        with self._lock:
            self._done += size
            if self._on_progress is not None:
                self._on_progress(self._done, self._size)
