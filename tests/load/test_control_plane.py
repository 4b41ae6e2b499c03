"""The load harness at toy size: what it counts must be there, once. It asserts nothing about time."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
BENCH = ROOT / "bench"
JOBS, WORKERS, TEMPLATES, EVENTS = 200, 20, 50, 20
sys.path.insert(0, str(BENCH))
from queue_pooler import find_pgbouncer  # noqa: E402 - bench/ is a folder of programs, not a package


def run_bench(out: Path, *arguments: str) -> dict[str, Any]:
    sizes = ["--jobs", str(JOBS), "--workers", str(WORKERS), "--sample", "40", "--scale", "1", "--rows", "300,600"]
    command = [sys.executable, str(BENCH / "control_plane.py"), "--quick", *sizes, *arguments, "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(out.read_bytes())
    return found


@pytest.mark.timeout(300)
@pytest.mark.parametrize("pooler", [False, True])
def test_every_job_is_completed_once_and_no_row_is_lost(tmp_path: Path, pooler: bool) -> None:
    if pooler and find_pgbouncer() is None:
        pytest.skip("there is no pgbouncer on this machine")
    results = run_bench(tmp_path / "out.json", "--parts", "life", *(["--pooler"] if pooler else []))
    (run,) = results["runs"]["life"]
    assert (run["completed"], run["lost"], run["events"]) == (JOBS, 0, JOBS * EVENTS)
    rows = {name: size["rows"] for name, size in results["sizes"].items()}
    assert rows == {
        "jobs": JOBS + TEMPLATES,
        "job_events": JOBS * (EVENTS + 4) + 2 * TEMPLATES,  # queued, claimed, checkpoint and completed
        "job_metrics": JOBS * EVENTS // 2,
        "checkpoints": JOBS,
        "models": JOBS,
        "ledger": JOBS + TEMPLATES,
        "outbox": JOBS * 3 + TEMPLATES,
    }
    assert (tmp_path / "out.png").stat().st_size > 0


@pytest.mark.timeout(300)
def test_the_other_parts_count_what_they_measure(tmp_path: Path) -> None:
    results = run_bench(tmp_path / "out.json", "--parts", "contenders,growth,doorbell,heartbeats")
    assert set(results["contenders"]) == {"arq", "pgqueuer", "pgqueuer, one at a time", "procrastinate"}
    assert [(run["rows"], run["completed"]) for run in results["runs"]["growth"]] == [(300, 40), (600, 40)]
    bells = {run["label"]: run for run in results["runs"]["doorbell"]}
    assert {label: run["completed"] for label, run in bells.items()} == {"ring": 40, "both": 40, "arrivals": 40}
    assert bells["ring"]["rung"] == 40
    (held,) = results["runs"]["heartbeats"]
    assert held["claims"] == WORKERS
    assert held["heartbeats"] > 0
