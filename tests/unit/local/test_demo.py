"""What the demo decides: which job it goes on with, when it kills, and texts that are the same every time."""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from io import StringIO
from itertools import islice
from pathlib import Path
from typing import Any, cast

import pytest
from fusion_client import Estimate, Event, Fusion, JobDetail
from fusion_client.models import JobProgress
from fusion_local.demo import run as demo
from fusion_local.demo import texts
from fusion_local.services import TRAINER, LocalFusion
from rich.console import Console


def job(number: int, status: str, *, step: int = 0, retries: int = 0) -> JobDetail:
    return JobDetail(
        id=f"job-{number}",
        type="train",
        status=status,
        retries=retries,
        last_checkpoint_step=step,
        output_model_id=None,
        created_at=datetime.now(UTC),
        started_at=None,
        finished_at=None,
        phase=None,
        progress=JobProgress(step=step, total_steps=100, percent=0, tokens=0, seconds_left=None),
        base_model_id="base",
        dataset_id="dataset",
        hyperparams={},
        params_before=1,
        params_after=2,
        estimate=Estimate(total_usd=2, unit="1M-tokens", qty=1, line_items=[]),
        cancel_requested=False,
        error=None,
    )


class Api:
    """Answers the job of an idempotency key; a key it has not seen is a new, queued job."""

    def __init__(self, *earlier: str) -> None:
        self.earlier = list(earlier)
        self.jobs: dict[str, JobDetail] = {}

    def create_job(self, *, idempotency_key: str, **_: Any) -> JobDetail:
        if idempotency_key not in self.jobs:
            status = self.earlier.pop(0) if self.earlier else "queued"
            self.jobs[idempotency_key] = job(len(self.jobs) + 1, status)
        return self.jobs[idempotency_key]

    def get_job(self, job_id: str) -> JobDetail:
        return next(found for found in self.jobs.values() if found.id == job_id)


class Local:
    """Notes which workers are killed and started."""

    def __init__(self) -> None:
        self.root = Path()
        self.calls: list[str] = []
        self.stack = self
        self.processes = self

    def pid(self, _: str) -> int:
        return 1

    def kill(self, name: str) -> None:
        self.calls.append(f"kill {name}")

    def start_worker(self, name: str, _: str) -> None:
        self.calls.append(f"start {name}")


def submit(api: Api, state: demo.State, folder: Path) -> JobDetail:
    return demo._submit(cast(Fusion, api), "base", folder, state, Console(file=StringIO()))


@pytest.mark.parametrize("status", ["queued", "running", "preempted", "completed"])
def test_a_second_run_goes_on_with_the_job_of_the_first(tmp_path: Path, status: str) -> None:
    api = Api(status)
    first = submit(api, demo.State("dataset"), tmp_path)
    assert submit(api, demo.State("dataset"), tmp_path).id == first.id == "job-1"


def test_failed_and_cancelled_jobs_are_replaced_for_good(tmp_path: Path) -> None:
    api, state = Api("failed", "cancelled"), demo.State("dataset")
    assert submit(api, state, tmp_path).id == "job-3"
    assert submit(api, demo._read_state(tmp_path), tmp_path).id == "job-3"


def test_another_dataset_or_serial_is_another_job(tmp_path: Path) -> None:
    api = Api()
    states = [demo.State("dataset"), demo.State("other"), demo.State("dataset", 2)]
    assert len({submit(api, state, tmp_path).id for state in states}) == 3


def follow(monkeypatch: pytest.MonkeyPatch, before: JobDetail, events: list[tuple[str, int]]) -> list[str]:
    """The calls that events of (type, step) bring about."""
    local = Local()

    def watch(_: object, __: str, ___: object, on_event: Callable[[Event], None], **____: object) -> JobDetail:
        for seq, (kind, step) in enumerate(events, start=1):
            on_event(Event(seq=seq, type=kind, data={"step": step}))
        return job(1, "completed")

    monkeypatch.setattr(demo, "watch", watch)
    demo._follow(cast(LocalFusion, local), cast(Fusion, None), before, Console(file=StringIO()))
    return local.calls


KILLED = [f"kill {TRAINER}", f"start {TRAINER}"]


@pytest.mark.parametrize(
    ("events", "calls"),
    [
        ([("metrics", 60)], []),
        ([("checkpoint", 20), ("metrics", 49)], []),
        ([("checkpoint", 20), ("metrics", 50), ("metrics", 60)], KILLED),
        ([("metrics", 60), ("checkpoint", 60), ("metrics", 61)], KILLED),
    ],
)
def test_kills_once_half_way_when_there_is_a_checkpoint(
    monkeypatch: pytest.MonkeyPatch, events: list[tuple[str, int]], calls: list[str]
) -> None:
    assert follow(monkeypatch, job(1, "queued"), events) == calls


def test_events_of_an_earlier_run_kill_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    interrupted = job(1, "running", step=70)
    assert follow(monkeypatch, interrupted, [("checkpoint", 50), ("metrics", 70)]) == []
    assert follow(monkeypatch, interrupted, [("checkpoint", 50), ("metrics", 71)]) == KILLED
    assert follow(monkeypatch, job(1, "running", step=70, retries=1), [("metrics", 99)]) == []


def test_a_job_that_does_not_complete_says_where_to_look(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "watch", lambda *_, **__: job(1, "failed"))
    with pytest.raises(demo.DemoError, match="logs"):
        demo._follow(cast(LocalFusion, Local()), cast(Fusion, None), job(1, "queued"), Console(file=StringIO()))


def test_texts_are_many_clean_and_the_same_every_time(monkeypatch: pytest.MonkeyPatch) -> None:
    some = list(islice(texts._modules(), 40))
    monkeypatch.setattr(texts, "_modules", lambda: iter(some))
    documentation, source = texts.documentation(), texts.source_code()
    assert documentation == texts.documentation()
    assert source == texts.source_code()
    assert len(documentation) > 200 and len(source) > 200
    assert all(text.strip() and "\0" not in text for text in source)
    assert not set(documentation) & set(source)


def test_rows_are_complete_or_absent(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    texts.write_rows(path, ["one\ntwo", "drei ü"])
    assert [json.loads(line) for line in path.read_text().splitlines()] == [{"text": "one\ntwo"}, {"text": "drei ü"}]
    with pytest.raises(TypeError):
        texts.write_rows(tmp_path / "broken.jsonl", [cast(str, object())])
    assert not (tmp_path / "broken.jsonl").exists()
