"""Uploads in parts: `client.uploads`, one method an operation. `client.upload` sends a file of any size."""

from collections.abc import Sequence
from pathlib import Path

from fusion_client import storage
from fusion_client.dataset_models import SignedPart, Upload
from fusion_client.storage import Progress
from fusion_client.transport import Transport, new_key, segment

_PATH = "/api/uploads"
_URLS_AT_ONCE = 32


class Uploads:
    """Every method raises what those of Fusion raise."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def begin(self, filename: str, content_type: str, size: int, part_size: int | None = None) -> Upload:
        """POST /api/uploads/multipart: parts of `part_size` bytes, which the server chooses if it is not given."""
        body = {"filename": filename, "content_type": content_type, "size": size}
        body |= {"part_size": part_size} if part_size is not None else {}
        return self._transport.post(f"{_PATH}/multipart", Upload, body, new_key())

    def get(self, upload_id: str) -> Upload:
        """GET /api/uploads/{id}: what of it has arrived."""
        return self._transport.get(_path(upload_id), Upload)

    def sign_parts(self, upload_id: str, part_numbers: Sequence[int] = ()) -> Sequence[SignedPart]:
        """POST /api/uploads/{id}/parts: where to PUT these parts, or the first thousand that are missing."""
        body = {"part_numbers": list(part_numbers)} if part_numbers else {}
        return self._transport.post(f"{_path(upload_id)}/parts", list[SignedPart], body, new_key())

    def complete(self, upload_id: str) -> Upload:
        """POST /api/uploads/{id}/complete, once all parts have arrived."""
        return self._transport.post(f"{_path(upload_id)}/complete", Upload, None, new_key())

    def abort(self, upload_id: str) -> None:
        """DELETE /api/uploads/{id}: what has arrived is dropped."""
        self._transport.request("DELETE", _path(upload_id))

    def send(self, path: Path, content_type: str, on_progress: Progress | None = None) -> str:
        """Send a file in parts; answers its upload id. Raises TransferError or OSError.

        A broken connection costs a part, not the file; URLs are asked for as they are needed, since they expire.
        """
        size, done = path.stat().st_size, 0

        def count(part: int) -> None:
            nonlocal done
            done += part
            if on_progress is not None:
                on_progress(done, size)

        begun = self.begin(path.name, content_type, size)
        assert begun.part_size is not None, "an upload in parts says how large they are"
        for start in range(0, len(begun.missing), _URLS_AT_ONCE):
            parts = self.sign_parts(begun.upload_id, begun.missing[start : start + _URLS_AT_ONCE])
            storage.put_parts(parts, path, begun.part_size, self._transport.retries, count)
        return self.complete(begun.upload_id).upload_id


def _path(upload_id: str) -> str:
    return f"{_PATH}/{segment(upload_id)}"
