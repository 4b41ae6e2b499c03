"""Folders that are complete or absent, and the manifests that describe them."""

import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import msgspec
from fusion_core.trainer_protocol import MANIFEST_FILE, FileEntry, Manifest, write_atomic


def sync(path: Path) -> None:
    """fsync a file or a folder."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def complete_or_absent(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder that becomes `folder`, fsynced, when the block ends; on an exception nothing is left.

    A `folder` of an earlier attempt is replaced.
    """
    temporary = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    for path in temporary.iterdir():
        sync(path)
    sync(temporary)
    if folder.exists():
        shutil.rmtree(folder)
    temporary.rename(folder)
    sync(folder.parent)


def build_manifest(folder: Path) -> Manifest:
    """Hash every file of a flat folder, reading each back from disk; manifest.json itself is not listed."""
    files = []
    for path in sorted(folder.iterdir(), key=lambda path: path.name):
        if path.name == MANIFEST_FILE:
            continue
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        files.append(FileEntry(rel=path.name, size=path.stat().st_size, sha256=digest))
    return Manifest(files=tuple(files))


def write_manifest(folder: Path) -> Manifest:
    """Add manifest.json, the last file of a folder, and return what it says."""
    manifest = build_manifest(folder)
    (folder / MANIFEST_FILE).write_bytes(msgspec.json.format(msgspec.json.encode(manifest)))
    return manifest


def add_to_folder(folder: Path, manifest: Manifest, files: Mapping[str, bytes]) -> Manifest:
    """Write small files into a complete folder, fsynced; the manifest with them, without hashing the others again."""
    entries = {file.rel: file for file in manifest.files}
    for name, content in files.items():
        write_atomic(folder / name, content)
        entries[name] = FileEntry(rel=name, size=len(content), sha256=hashlib.sha256(content).hexdigest())
    sync(folder)
    return Manifest(files=tuple(entries[name] for name in sorted(entries)))
