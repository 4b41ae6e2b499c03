"""Downloads: parallel, verified, resumable, and never outside their folder."""

import hashlib
import os

import pytest
from fusion_client import ChecksumError, TransferError, UnsafePathError

from .conftest import Answer, as_json

_MANIFEST = "GET /api/models/m-1/download"


@pytest.fixture
def publish(server):
    """Put files behind URLs and name them in the manifest; answers the manifest."""

    def publish(files: dict[str, bytes]) -> dict[str, object]:
        entries = []
        for number, (rel, content) in enumerate(files.items()):
            digest = hashlib.sha256(content).hexdigest()
            url = f"{server.url}/objects/{number}?signature=1"
            entries.append({"rel": rel, "size": len(content), "sha256": digest, "url": url})
            server.routes[f"GET /objects/{number}"] = [Answer(200, content)]
        manifest = {"model_id": "m-1", "name": "m", "version": "v1", "files": entries}
        server.routes[_MANIFEST] = [as_json(manifest)]
        return manifest

    return publish


def _fetched(server) -> list[str]:
    return sorted(asked.path.partition("?")[0] for asked in server.asked if asked.path.startswith("/objects"))


def test_every_file_comes_whole_and_without_the_key(server, client, publish, tmp_path):
    files = {f"part-{n}.bin": os.urandom(200_000 + n) for n in range(6)} | {"sub/config.json": b"{}", "empty": b""}
    publish(files)
    seen: list[tuple[int, int]] = []
    client.download_model("m-1", tmp_path / "model", parallel=3, on_progress=lambda *now: seen.append(now))
    assert {rel: (tmp_path / "model" / rel).read_bytes() for rel in files} == files
    size = sum(map(len, files.values()))
    assert seen[-1] == (size, size)
    assert not any("authorization" in asked.headers for asked in server.asked if asked.path.startswith("/objects"))
    assert not list((tmp_path / "model").rglob("*.part"))


def test_verified_files_are_not_fetched_again_and_damaged_ones_are(server, client, publish, tmp_path):
    publish({"a": b"aaaa", "b": b"bbbb", "c": b"cccc"})
    (tmp_path / "a").write_bytes(b"aaaa")
    (tmp_path / "b").write_bytes(b"bbbX")
    (tmp_path / "c.part").write_bytes(b"cc")
    client.download_model("m-1", tmp_path)
    assert _fetched(server) == ["/objects/1", "/objects/2"]
    assert (tmp_path / "b").read_bytes() == b"bbbb"


@pytest.mark.parametrize("wrong", [b"aaaX", b"aaaaa", b"aaa"])
def test_other_bytes_than_promised_are_refused_and_leave_nothing(server, client, publish, tmp_path, wrong):
    publish({"a": b"aaaa"})
    server.routes["GET /objects/0"] = [Answer(200, wrong)]
    with pytest.raises(ChecksumError, match="a: what came"):
        client.download_model("m-1", tmp_path)
    assert not list(tmp_path.iterdir())


def test_what_was_verified_before_a_failure_stays(server, client, publish, tmp_path):
    publish({"a": b"aaaa", "b": b"bbbb"})
    server.routes["GET /objects/1"] = [Answer(200, b"bbbX")]
    with pytest.raises(ChecksumError):
        client.download_model("m-1", tmp_path, parallel=1)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_broken_body_is_fetched_again(server, client, publish, tmp_path):
    publish({"a": b"aaaa"})
    server.routes["GET /objects/0"] = [Answer(200, b"aa", length=4), Answer(503), Answer(200, b"aaaa")]
    seen: list[int] = []
    client.download_model("m-1", tmp_path, on_progress=lambda done, size: seen.append(done))
    assert (tmp_path / "a").read_bytes() == b"aaaa"
    assert seen[-1] == 4


def test_expired_urls_are_renewed(server, client, publish, tmp_path):
    manifest = publish({"a": b"aaaa", "b": b"bbbb"})
    expired = [entry | {"url": entry["url"].replace("objects", "expired")} for entry in manifest["files"]]
    for number in range(2):
        server.routes[f"GET /expired/{number}"] = [Answer(403)]
    server.routes[_MANIFEST] = [as_json(manifest | {"files": expired}), as_json(manifest)]
    client.download_model("m-1", tmp_path)
    assert (tmp_path / "b").read_bytes() == b"bbbb"
    assert sum(asked.path.startswith("/api/models") for asked in server.asked) == 2


def test_a_missing_object_is_an_error_that_names_the_file(server, client, publish, tmp_path):
    publish({"a": b"aaaa"})
    server.routes["GET /objects/0"] = [Answer(404)]
    with pytest.raises(TransferError, match="a was not downloaded: storage answered 404"):
        client.download_model("m-1", tmp_path)


@pytest.mark.parametrize(
    "rel", ["../a", "/etc/a", "sub/../../a", "sub/../a", "", "a//b", "./a", "..", "a\\..\\b", "C:a", "a\0"]
)
def test_a_path_that_leaves_the_folder_is_refused_before_anything_is_written(client, publish, tmp_path, rel):
    publish({"good": b"good", rel: b"evil"})
    with pytest.raises(UnsafePathError):
        client.download_model("m-1", tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_a_link_that_leads_out_of_the_folder_is_refused(client, publish, tmp_path):
    publish({"sub/a": b"evil"})
    (tmp_path / "outside").mkdir()
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "sub").symlink_to(tmp_path / "outside")
    with pytest.raises(UnsafePathError, match="link"):
        client.download_model("m-1", tmp_path / "model")
    assert not list((tmp_path / "outside").iterdir())
