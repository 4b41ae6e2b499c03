"""The limits of a dataset: each bounds memory or time, so that no file can hurt the machine that reads it."""

import msgspec

MIB = 2**20
GIB = 2**30


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """The service and `python -m fusion_data validate` use the defaults; tests use smaller ones."""

    line_bytes: int = 8 * MIB
    """A line of JSONL or CSV, a record of CSV, a paragraph of plain text, a row of Parquet."""
    file_bytes: int = 256 * GIB
    """One file once it is decompressed."""
    expansion: int = 200
    """How many times its size a compressed file may become, looked at once `expansion_from_bytes` have come out."""
    expansion_from_bytes: int = 64 * MIB
    zstd_window_bytes: int = 128 * MIB
    """Memory that a zstd frame may ask for: that of `zstd --ultra -22` and `--long=27`."""
    rows: int = 100_000_000
    """Rows of a dataset, good and bad."""
    nesting: int = 64
    """Arrays and objects inside one another, in a row."""
    messages: int = 10_000
    """Messages of one row."""
    columns: int = 1_000
    """Columns of a CSV or Parquet file."""
    seconds: float = 12 * 3600
    """Reading all files once."""
    memory_bytes: int = 2 * GIB
    """Of the service's process that reads; a usual file takes a tenth of it."""
    row_group_bytes: int = 4 * GIB
    """One row group of Parquet, uncompressed. It is read in parts."""


LIMITS = Limits()
