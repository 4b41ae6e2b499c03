"""Which rows are held out is a matter of their content: not of the upload, the order, the file or the format."""

import csv
import gzip
import io
import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from fusion_core.trainer_protocol import ShardSaved, TrainerEvent

PAIRS = [{"prompt": f"question {number}", "completion": f"answer {number}"} for number in range(400)]
Ingest = Callable[..., list[TrainerEvent]]


def jsonl(rows: list[dict[str, str]]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def csv_file(rows: list[dict[str, str]]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, ["completion", "prompt"])
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def heldout(events: list[TrainerEvent]) -> set[str]:
    shards = [Path(event.path) for event in events if isinstance(event, ShardSaved) and event.split == "heldout"]
    return {line for shard in shards for line in shard.read_text().splitlines()}


@pytest.fixture
def first(ingested: Ingest) -> set[str]:
    return heldout(ingested({"a.jsonl": jsonl(PAIRS)}, heldout_percent=10))


@pytest.mark.parametrize(
    "again",
    [
        {"renamed.jsonl": jsonl(PAIRS)},
        {"a.jsonl": jsonl(random.Random(1).sample(PAIRS, len(PAIRS)))},
        {"a.jsonl": jsonl(PAIRS[:150]), "b.jsonl": jsonl(PAIRS[150:])},
        {"a.csv": csv_file(PAIRS)},
        {"a.jsonl.gz": gzip.compress(jsonl(PAIRS))},
        {"a.jsonl": jsonl([row | {"id": str(number)} for number, row in enumerate(PAIRS)])},
    ],
    ids=["renamed", "shuffled", "in two files", "as CSV", "compressed", "with other fields"],
)
def test_the_same_rows_are_held_out_in_every_upload(first: set[str], ingested: Ingest, again: dict[str, bytes]) -> None:
    assert 20 < len(first) < 80
    assert heldout(ingested(again, heldout_percent=10)) == first


def test_new_rows_move_no_old_one(first: set[str], ingested: Ingest) -> None:
    more = [{"prompt": f"new {number}", "completion": "x"} for number in range(400)]
    grown = heldout(ingested({"a.jsonl": jsonl(more + PAIRS)}, heldout_percent=10))
    old = {json.dumps(row, separators=(",", ":")) for row in PAIRS}
    assert grown & old == first
    assert grown - old


def test_a_repeated_row_is_on_one_side_only(ingested: Ingest) -> None:
    events = ingested({"a.jsonl": jsonl(PAIRS * 2)}, heldout_percent=10)
    counts = dict.fromkeys(("train", "heldout"), 0)
    for event in events:
        if isinstance(event, ShardSaved):
            counts[event.split] += event.rows
    assert counts["heldout"] == 2 * len(heldout(events))
    assert sum(counts.values()) == 800
