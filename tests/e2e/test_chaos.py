"""A minute of faults of every kind, from one seed, on the real processes: nothing that must hold is broken."""

from pathlib import Path

import pytest

from tests.faults.chaos import Watching, run

SEED, SECONDS, FAULTS = 5, 60.0, 30


@pytest.mark.e2e
@pytest.mark.timeout(600)
def test_a_minute_of_chaos_breaks_nothing(tmp_path: Path) -> None:
    silent = Watching(lambda fault, number: None, lambda over, of: None)
    result = run(tmp_path, SEED, SECONDS, FAULTS, silent)
    assert result.violations == [], f"seed {SEED}; history in {result.history}"
    assert result.faults.total() == FAULTS
    assert len(result.faults) > FAULTS // 2, "of every kind"
    assert result.interruptions > 0, "faults that interrupted no job show nothing"
    assert result.jobs["completed"] > 0
