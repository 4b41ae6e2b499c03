"""Compressed files: found by name and content, bounded, and never half read without a word."""

import gzip
import io

import pytest
import zstandard
from fusion_data import Limits, Row, Source, read_rows

ROWS = b"".join(b'{"text": "row %d"}\n' % number for number in range(2000))


def zstd(content: bytes, **options) -> bytes:
    return zstandard.ZstdCompressor(**options).compress(content)


def zstd_stream(content: bytes) -> bytes:
    """A frame that does not say how much it holds, as `cat file | zstd` makes it."""
    buffer = io.BytesIO()
    with zstandard.ZstdCompressor().stream_writer(buffer, closefd=False) as writer:
        writer.write(content)
    return buffer.getvalue()


@pytest.mark.parametrize("pack", [gzip.compress, zstd, zstd_stream])
def test_a_compressed_file_has_the_rows_of_the_plain_one(read, pack):
    ending = ".gz" if pack is gzip.compress else ".zst"
    assert read(pack(ROWS), f"a.jsonl{ending}") == read(ROWS)
    assert read(pack(b"one\n\ntwo"), f"A.TXT{ending.upper()}") == read(b"one\n\ntwo", "a.txt")
    parts = pack(ROWS[:100]) + pack(ROWS[100:])
    assert read(parts, f"a.jsonl{ending}") == read(ROWS)


def test_frames_that_are_skipped_and_empty_files(read, fault):
    skippable = b"\x50\x2a\x4d\x18\x03\x00\x00\x00abc"
    assert read(skippable + zstd(ROWS), "a.jsonl.zst") == read(ROWS)
    assert read(gzip.compress(b""), "a.jsonl.gz") == []
    assert fault(b"", "a.jsonl.gz").rule == "format_mismatch"


@pytest.mark.parametrize(
    ("content", "name", "words"),
    [
        (gzip.compress(ROWS), "a.jsonl", "the content is gzip, and the name has no .gz or .zst"),
        (zstd(ROWS), "a.jsonl", "the content is zstd, and the name has no .gz or .zst"),
        (ROWS, "a.jsonl.gz", "the content is not compressed, and the name has .gz"),
        (gzip.compress(ROWS), "a.jsonl.zst", "the content is gzip, and the name has .zst"),
        (gzip.compress(gzip.compress(ROWS)), "a.jsonl.gz", "compressed twice"),
        (b"PK\x03\x04rest", "a.csv", "a zip archive"),
        (b"BZh91AY", "a.jsonl", "bzip2"),
        (b"PAR1rest", "a.csv", "Parquet, and the name ends in .csv"),
        (b"text\n", "a.parquet", "not Parquet"),
        (gzip.compress(b"text\n"), "a.parquet.gz", "not Parquet"),
    ],
    ids=lambda value: value if isinstance(value, str) else "content",  # gzip writes the time
)
def test_a_name_that_does_not_fit_the_content_is_a_clear_error(fault, content, name, words):
    found = fault(content, name)
    assert (found.rule, found.line) == ("format_mismatch", 1)
    assert words in found.detail


@pytest.mark.parametrize("ending", [".gz", ".zst"])
@pytest.mark.parametrize("kept", [0.3, 0.9, 0.999])
def test_a_stream_that_is_cut_off_is_never_taken_for_whole(read, ending, kept):
    content = gzip.compress(ROWS) if ending == ".gz" else zstd_stream(ROWS)
    *_, last = read(content[: int(len(content) * kept)], f"a.jsonl{ending}")
    assert last.is_fatal
    assert last.faults[0].rule == "cut_off_file"


@pytest.mark.parametrize("ending", [".gz", ".zst"])
def test_a_damaged_stream_says_so(read, ending):
    content = bytearray(gzip.compress(ROWS) if ending == ".gz" else zstd(ROWS, write_checksum=True))
    content[len(content) // 2] ^= 0xFF
    *_, last = read(bytes(content), f"a.jsonl{ending}")
    assert last.is_fatal
    assert last.faults[0].rule in ("damaged_file", "cut_off_file")


@pytest.mark.parametrize(("ending", "pack"), [(".gz", gzip.compress), (".zst", zstd)])
def test_bombs_are_stopped_by_ratio_and_by_size(read, ending, pack):
    line = b'{"text": "' + b"x" * 100_000 + b'"}\n'
    bomb = pack(line * 200)
    by_ratio = Limits(expansion=50, expansion_from_bytes=1_000_000)
    *rows, last = read(bomb, f"a.jsonl{ending}", by_ratio)
    assert last.faults[0].rule == "expands_too_far"
    assert "the limit is 50 times" in last.faults[0].detail
    assert len([row for row in rows if isinstance(row, Row)]) < 100
    *rows, last = read(bomb, f"a.jsonl{ending}", Limits(file_bytes=3_000_000))
    assert (last.faults[0].rule, last.faults[0].line) == ("expands_too_far", max(1, len(rows)))
    assert len(read(bomb, f"a.jsonl{ending}", Limits(expansion_from_bytes=10**9))) == 200


def test_a_window_larger_than_the_limit_is_refused(fault):
    parameters = zstandard.ZstdCompressionParameters(window_log=24)
    buffer = io.BytesIO()
    compressor = zstandard.ZstdCompressor(compression_params=parameters)
    with compressor.stream_writer(buffer, closefd=False) as writer:
        writer.write(ROWS)
    found = fault(buffer.getvalue(), "a.jsonl.zst", Limits(zstd_window_bytes=2**20))
    assert found.rule == "damaged_file"
    assert "memory" in found.detail


def test_what_has_been_consumed_is_known(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(gzip.compress(ROWS))
    source = Source(path, "x.jsonl.gz")
    assert sum(isinstance(row, Row) for row in read_rows(source)) == 2000
    assert source.consumed == source.size == path.stat().st_size
    assert source.decompressed == len(ROWS)
