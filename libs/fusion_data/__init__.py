"""Reads, validates and shards datasets, without torch or a database: `python -m fusion_data --help`.

A row is one text. JSONL files hold one `{"text": ...}` a line, plain text files one paragraph block a row. One bad
line fails the whole upload, and the report names every one of them: nothing is ever dropped silently.
"""

from fusion_data.formats import FORMATS, read_rows
from fusion_data.lines import MAX_LINE_BYTES, Fault
from fusion_data.survey import MAX_ROWS, DatasetError, Survey, survey_files

__all__ = [
    "FORMATS",
    "MAX_LINE_BYTES",
    "MAX_ROWS",
    "DatasetError",
    "Fault",
    "Survey",
    "read_rows",
    "survey_files",
]
