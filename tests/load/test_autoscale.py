"""The simulation of autoscaling over half an hour: every job ends, every GPU-second is accounted for, rules hold."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
BENCH = ROOT / "bench"
sys.path.insert(0, str(BENCH))
import autoscale_scalers as scalers  # noqa: E402 - bench/ is a folder of programs, not a package

NEAR_H = 1 / 3600
CHECKPOINT_S, UPLOAD_S = 60.0, 30.0


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, bool], Any]:
    """(mode, spot) -> what came of it: spot nodes are taken away after half an hour on average."""
    out = tmp_path_factory.mktemp("autoscale") / "out.json"
    day = ["--hours", "0.5", "--from-h", "10", "--spot-mean-h", "0.5", "--max", "3"]
    command = [sys.executable, str(BENCH / "autoscale.py"), *day, "--checkpoint-seconds", "60", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert out.with_suffix(".png").stat().st_size > 0
    return {(one["mode"], one["spot"]): one for one in json.loads(out.read_bytes())["outcomes"]}


@pytest.mark.timeout(300)
def test_no_job_is_lost_and_every_paid_second_is_used_or_wasted(outcomes: dict[tuple[str, bool], Any]) -> None:
    assert {mode for mode, _ in outcomes} >= {"fixed 3", "deployment", "scaledjob"}
    for one in outcomes.values():
        assert one["faults"] == []
        assert one["completed"] == one["jobs"] > 0
        assert one["paid_h"] == pytest.approx(one["used_h"] + sum(one["wasted_h"].values()), abs=NEAR_H)
        assert min(one["wasted_h"].values()) > -NEAR_H
    assert len({one["used_h"] for one in outcomes.values()}) == 1


@pytest.mark.timeout(300)
def test_an_interruption_costs_a_checkpoint_at_most_and_a_drain_no_step(outcomes: dict[tuple[str, bool], Any]) -> None:
    on_demand = [one for (_, spot), one in outcomes.items() if not spot]
    assert [one["lost_steps"] for one in on_demand] == [0] * len(on_demand)
    spot = [one for (_, spot), one in outcomes.items() if spot]
    assert sum(one["noticed"] for one in spot) > 0
    assert sum(one["unnoticed"] for one in spot) > 0
    assert 0 < max(one["most_lost_s"] for one in spot) <= CHECKPOINT_S + UPLOAD_S
    assert [one["scaled_in"] for (mode, _), one in outcomes.items() if mode == "scaledjob"] == [0, 0]


def test_the_simulated_autoscaler_has_the_policies_of_the_chart() -> None:
    chart = (ROOT / "deploy/helm/fusion/templates/worker-scaledobject.yaml").read_text()
    percent = f"{{type: Percent, value: {scalers.UP_PERCENT}, periodSeconds: {scalers.UP_PERIOD_S:.0f}}}"
    pods = f"{{type: Pods, value: {scalers.UP_PODS}, periodSeconds: {scalers.UP_PERIOD_S:.0f}}}"
    assert f"scaleUp: {{stabilizationWindowSeconds: 0, policies: [{percent}, {pods}]}}" in chart
    down = f"{{type: Pods, value: {scalers.DOWN_PODS}, periodSeconds: {scalers.DOWN_PERIOD_S:.0f}}}"
    window = f"{{{{ min {scalers.LONGEST_WINDOW_S:.0f} (int $pool.idleSeconds) }}}}"
    assert f"scaleDown: {{stabilizationWindowSeconds: {window}, policies: [{down}]}}" in chart


def test_the_simulated_autoscaler_grows_at_once_and_shrinks_a_pod_a_minute_after_the_window() -> None:
    nothing: Any = None
    pool = scalers.Pool(least=0, most=12, idle_s=120, polling_s=15)
    scaler = scalers.Deployment(nothing, nothing, pool)
    scaler.replicas, seen = 1, []
    for look in range(30):
        scaler.replicas = scaler.wanted(look * scalers.HPA_SYNC_S, 20 if look < 4 else 6)
        seen.append(scaler.replicas)
    assert seen[:4] == [5, 10, 12, 12]
    shrinks = [look * scalers.HPA_SYNC_S for look in range(1, 30) if seen[look] < seen[look - 1]]
    assert shrinks == [165.0, 225.0, 285.0, 345.0, 405.0], "the last look at a demand of 20 was at 45 s"
    assert seen[-1] == 12 - len(shrinks)


def test_the_simulated_jobs_are_made_for_what_is_wanted_and_not_there() -> None:
    nothing: Any = SimpleNamespace()
    jobs = scalers.Jobs(nothing, nothing, scalers.Pool(least=0, most=4, idle_s=60, polling_s=15))
    assert [jobs.missing(running, demand) for running, demand in [(0, 3), (2, 3), (3, 3), (2, 9), (4, 1)]] == [
        3,
        1,
        0,
        2,
        0,
    ]
    warm = scalers.Jobs(nothing, nothing, scalers.Pool(least=2, most=4, idle_s=60, polling_s=15))
    assert [warm.missing(running, demand) for running, demand in [(0, 0), (1, 9), (2, 0), (2, 9), (6, 9)]] == [
        2,
        1,
        0,
        4,
        0,
    ]
