"""Reads, validates and shards datasets, without torch or a database: `python -m fusion_data --help`.

Files of any format become rows of four types (`rows.py`); every broken rule (`rules.py`) is named with its place and
its fix, and nothing is ever dropped silently. docs/datasets.md is the page for customers.
"""

from fusion_data.faults import BadRow, Fault
from fusion_data.formats import FORMATS, read_rows
from fusion_data.limits import LIMITS, Limits
from fusion_data.report import Report
from fusion_data.rows import ROW_TYPES, Row
from fusion_data.rules import RULES
from fusion_data.source import Source
from fusion_data.survey import DatasetError, Survey, survey_files

__all__ = [
    "FORMATS",
    "LIMITS",
    "ROW_TYPES",
    "RULES",
    "BadRow",
    "DatasetError",
    "Fault",
    "Limits",
    "Report",
    "Row",
    "Source",
    "Survey",
    "read_rows",
    "survey_files",
]
