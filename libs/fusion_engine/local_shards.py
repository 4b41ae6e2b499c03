"""Files that a person names on the command line, as the shards that the engine reads.

JSONL is taken as it is; plain text becomes a row a paragraph. Other formats are for `python -m fusion_data`, which the
service reads uploads with.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from fusion_engine.outcomes import RejectedError

_JSONL, _TEXT = (".jsonl", ".ndjson"), (".txt",)


def local_shards(paths: Sequence[Path], folder: Path) -> tuple[str, ...]:
    """The shards of files, and of the files in folders, by name; paragraphs of text are written to `folder` first.

    Raises RejectedError: inputs_unavailable for a path that does not exist, unsupported_format, dataset_empty, or
    invalid_encoding.
    """
    shards = []
    for number, path in enumerate(_files(paths)):
        if path.suffix in _TEXT:
            shards.append(str(_write_paragraphs(path, folder / f"{number:04}-{path.stem}.jsonl")))
        else:
            shards.append(str(path))
    return tuple(shards)


def _files(paths: Sequence[Path]) -> Iterator[Path]:
    for path in paths:
        if path.is_dir():
            found = sorted(file for file in path.iterdir() if file.suffix in _JSONL + _TEXT)
            if not found:
                raise RejectedError("dataset_empty", f"{path}: no .jsonl or .txt file is in this folder")
            yield from found
        elif not path.is_file():
            raise RejectedError("inputs_unavailable", f"{path}: there is no such file")
        elif path.suffix not in _JSONL + _TEXT:
            raise RejectedError("unsupported_format", f"{path}: not a format of the engine; give .jsonl or .txt")
        else:
            yield path


def _write_paragraphs(source: Path, target: Path) -> Path:
    try:
        with source.open(encoding="utf-8") as lines, target.open("wb") as shard:
            shard.writelines(msgspec.json.encode({"text": text}) + b"\n" for text in _paragraphs(lines))
    except UnicodeDecodeError as error:
        raise RejectedError("invalid_encoding", f"{source}: not UTF-8: {error}") from error
    return target


def _paragraphs(lines: Iterator[str]) -> Iterator[str]:
    """Runs of lines between blank ones."""
    paragraph: list[str] = []
    for line in lines:
        if line.strip():
            paragraph.append(line)
        elif paragraph:
            yield "".join(paragraph).rstrip("\n")
            paragraph = []
    if paragraph:
        yield "".join(paragraph).rstrip("\n")
