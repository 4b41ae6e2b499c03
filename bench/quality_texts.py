"""Domains of text that every machine with the lock file's packages has, without a network and in a fixed order.

A  Python's documentation: docstrings of the standard library and the topics of `help()` (English about a language).
B  manuals of some of AWS's services: the descriptions in botocore's service models. New to the base: the customer's.
C  C++ headers of PyTorch (code).
E  manuals of other services, a fourteenth of what the base reads: a customer's field is seldom unheard of.
"""

import gzip
import html
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import botocore
import torch
from fusion_local.demo.texts import documentation

ROW_CHARACTERS = 1200
CHARACTERS = 1_600_000
HELDOUT_EVERY, HELDOUT_CHARACTERS = 12, 50_000
_TAGS = re.compile(r"<[^>]+>")


def domains() -> dict[str, list[str]]:
    """The rows of each domain by its letter."""
    return {
        "A": documentation(),
        "B": list(_limited(_manuals(0), CHARACTERS)),
        "C": list(_limited(_headers(), CHARACTERS)),
        "E": list(_limited(_manuals(1), CHARACTERS // 4)),
    }


def split(rows: list[str]) -> tuple[list[str], list[str]]:
    """(training rows, held-out rows): of the one row in HELDOUT_EVERY that is not learned, some are held out."""
    unseen = rows[::HELDOUT_EVERY]
    every = max(1, round(sum(map(len, unseen)) / HELDOUT_CHARACTERS))
    return [row for number, row in enumerate(rows) if number % HELDOUT_EVERY], unseen[::every]


def _limited(rows: Iterator[str], characters: int) -> Iterator[str]:
    total = 0
    for row in rows:
        yield row
        total += len(row)
        if total > characters:
            return


def _manuals(first: int) -> Iterator[str]:
    """Distinct descriptions, each service's joined to rows, of every third service from `first` in the alphabet."""
    folder = Path(botocore.__file__).parent / "data"
    seen: set[str] = set()
    for path in sorted(folder.glob("*/*/service-2.json.gz"))[first::3]:
        descriptions = []
        for description in _descriptions(json.loads(gzip.decompress(path.read_bytes()))):
            text = " ".join(html.unescape(_TAGS.sub(" ", description)).split())
            if len(text) > 120 and text not in seen:
                seen.add(text)
                descriptions.append(text)
        # A few rows of each service: many services, none that fills the domain with its own phrases.
        yield from _joined(descriptions[:60])


def _descriptions(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        for key, value in node.items():
            if key == "documentation" and isinstance(value, str):
                yield value
            else:
                yield from _descriptions(value)
    elif isinstance(node, list):
        for value in node:
            yield from _descriptions(value)


def _headers() -> Iterator[str]:
    """Hand-written headers (c10 and torch/csrc), in pieces of whole lines."""
    include = Path(torch.__file__).parent / "include"
    for path in sorted([*include.glob("c10/**/*.h"), *include.glob("torch/csrc/**/*.h")]):
        lines = path.read_text(encoding="utf-8", errors="ignore").splitlines()
        yield from _joined([line for line in lines if line.strip()])


def _joined(parts: list[str]) -> Iterator[str]:
    row = ""
    for part in parts:
        row += part + "\n"
        if len(row) >= ROW_CHARACTERS:
            yield row
            row = ""
    if row:
        yield row
