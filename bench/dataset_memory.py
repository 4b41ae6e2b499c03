"""Peak memory and throughput of reading a dataset: it streams, so a file of any size takes the same memory.

    .venv/bin/python bench/dataset_memory.py [--gb 0.25] [--format csv] [--compression zst] [--folder DIR]

Writes a file of that size from a generator, starts the product's own `python -m fusion_data ingest` on it (check, count
duplicates, hash, then write shards: two passes), and beside it a process that does `json.loads` for each line and
nothing else. Peak resident memory is the kernel's figure for each process. Free space of twice the size is needed.
"""

import argparse
import contextlib
import csv
import gzip
import io
import itertools
import json
import multiprocessing
import os
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

import zstandard
from fusion_core.trainer_protocol import EventReader, Finished, IngestInput, IngestRun, write_run
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

GOAL_MB = 300
LOOP = "import json, sys\nfor line in open(sys.argv[1], 'rb'):\n    json.loads(line)\n"
GB, MB = 10**9, 10**6


class Measured(NamedTuple):
    """Of one process: seconds of the clock and of the CPU, and the most memory that was resident, in bytes."""

    wall_s: float
    cpu_s: float
    peak: int


def texts() -> Iterator[str]:
    """About 750 bytes each, no two alike: a number and one of a thousand made-up paragraphs."""
    source = random.Random(0)
    words = [f"word{number}" for number in range(20_000)]
    paragraphs = [" ".join(source.choices(words, k=80)) for _ in range(1000)]
    for number in itertools.count():
        yield f"{number} {paragraphs[number % 1000]}"


def write_file(path: Path, size: int, compression: str) -> int:
    """Rows until `size` bytes, before compression; answers how many rows."""
    if path.suffix == ".parquet":
        return write_parquet(path, size)
    written = rows = 0
    is_csv = ".csv" in path.name
    with Progress(transient=True) as bar, _opened(path, compression) as file:
        shown = bar.add_task("writing", total=size)
        if is_csv:
            file.write(b"text\n")
        for text in texts():
            line = _csv_line(text) if is_csv else json.dumps({"text": text}).encode() + b"\n"
            file.write(line)
            written += len(line)
            rows += 1
            if written >= size:
                return rows
            if rows % 10_000 == 0:
                bar.update(shown, completed=written)
    raise AssertionError("the texts have no end")


def write_parquet(path: Path, size: int) -> int:
    """The same in row groups of a hundred thousand rows, as many writers make them; answers how many rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = written = 0
    with pq.ParquetWriter(path, pa.schema({"text": pa.string()})) as writer:
        source = texts()
        while written < size:
            group = list(itertools.islice(source, 100_000))
            writer.write_table(pa.table({"text": group}))
            rows += len(group)
            written += sum(map(len, group))
    return rows


def _csv_line(text: str) -> bytes:
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow([text])
    return line.getvalue().encode()


@contextlib.contextmanager
def _opened(path: Path, compression: str) -> Iterator[IO[bytes]]:
    with path.open("wb") as raw:
        if compression == "gz":
            with gzip.GzipFile(fileobj=raw, mode="wb", compresslevel=1) as packed:
                yield packed
        elif compression == "zst":
            with zstandard.ZstdCompressor(level=1).stream_writer(raw) as packed:
                yield packed
        else:
            yield raw


def measure(argv: list[str]) -> Measured:
    """Run a process to its end. Raises RuntimeError if it fails."""
    began = time.perf_counter()
    child = os.posix_spawn(argv[0], argv, os.environ)
    _, status, usage = os.wait4(child, 0)
    if os.waitstatus_to_exitcode(status) != 0:
        raise RuntimeError(f"{argv} ended with {os.waitstatus_to_exitcode(status)}")
    return Measured(time.perf_counter() - began, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)


def ingest(folder: Path, path: Path, rows: int) -> Measured:
    write_run(folder, IngestRun(job_id="bench", lease_epoch=1, inputs=(IngestInput(str(path), path.name),)))
    measured = measure([sys.executable, "-m", "fusion_data", "ingest", str(folder)])
    outcome = [event for _, event in EventReader(folder).read()][-1]
    if not isinstance(outcome, Finished) or outcome.result["rows"] != rows:
        raise RuntimeError(f"{rows} rows were written, and the ingest ended with {outcome}")
    return measured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gb", type=float, default=0.25, help="size of the file before compression, in 10^9 bytes")
    parser.add_argument("--format", choices=("jsonl", "csv", "parquet"), default="jsonl")
    parser.add_argument("--compression", choices=("none", "gz", "zst"), default="none")
    parser.add_argument("--folder", type=Path, help="where to write, instead of the system's temporary folder")
    options = parser.parse_args()
    if options.format == "parquet" and options.compression != "none":
        parser.error("Parquet files compress themselves")
    size = int(options.gb * GB)
    ending = f".{options.format}" + ("" if options.compression == "none" else f".{options.compression}")
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        path = folder / f"data{ending}"
        # In a process of its own: what starts a process lends it its peak memory (getrusage, before exec).
        with multiprocessing.get_context("spawn").Pool(1) as writer:
            rows = writer.apply(write_file, (path, size, options.compression))
        ours = ingest(folder, path, rows)
        loop = measure([sys.executable, "-c", LOOP, str(path)]) if ending == ".jsonl" else None
    table = Table("", "peak memory", "wall", "CPU", "throughput of a pass (CPU)", box=None)
    if loop is not None:
        table.add_row("json.loads loop", f"{loop.peak / MB:,.0f} MB", f"{loop.wall_s:,.1f} s", f"{loop.cpu_s:,.1f} s",
                      f"{size / loop.cpu_s / MB:,.0f} MB/s")  # fmt: skip
    table.add_row("ingest, two passes", f"{ours.peak / MB:,.0f} MB", f"{ours.wall_s:,.1f} s", f"{ours.cpu_s:,.1f} s",
                  f"{2 * size / ours.cpu_s / MB:,.0f} MB/s")  # fmt: skip
    out = Console()
    out.print(f"{options.gb:g} GB of {ending}, {rows:,} rows", highlight=False)
    out.print(table)
    if loop is not None:
        out.print(f"ratio of a pass to the loop: {ours.cpu_s / 2 / loop.cpu_s:.2f}", highlight=False)
    out.print(f"goal: at most {GOAL_MB} MB; {'met' if ours.peak <= GOAL_MB * MB else 'missed'}", highlight=False)
    sys.exit(ours.peak > GOAL_MB * MB)


if __name__ == "__main__":
    main()
