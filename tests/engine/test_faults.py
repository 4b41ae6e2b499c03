"""What training does about a loss that is not finite and about memory that runs out, with the faults injected."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_runs import HYPERPARAMS, MakeRun, exported, last_checkpoint, of_type, outcome, request_stop_at
from fusion_engine import memory, summary
from fusion_engine.optimizer import learning_rate
from fusion_engine.outcomes import RejectedError
from fusion_engine.run import execute
from fusion_engine.train import Trainer
from safetensors.torch import load_file

Fault = Callable[[int, int], float]  # (step, rows) -> what the loss is multiplied by; may raise


@pytest.fixture
def inject(monkeypatch: pytest.MonkeyPatch) -> Callable[[Fault], None]:
    def inject(fault: Fault) -> None:
        whole = Trainer._loss

        def faulty(self: Trainer, first: int, count: int) -> Any:
            factor = fault(self.progress.step, count)
            loss, targets = whole(self, first, count)
            return loss * factor, targets

        monkeypatch.setattr(Trainer, "_loss", faulty)

    return inject


def notices(run_dir: Path) -> list[str]:
    return [event.code for event in of_type(run_dir, "Notice")]


def test_one_step_without_a_finite_loss_is_skipped(make_run: MakeRun, inject: Callable[[Fault], None]) -> None:
    inject(lambda step, _: math.nan if step == 5 else 1.0)
    run_dir = make_run("skip")
    execute(run_dir)
    assert [event.step for event in of_type(run_dir, "Metrics")] == [1, 2, 3, 4, *range(6, 17)]
    assert outcome(run_dir).result["perplexity_after"] < outcome(run_dir).result["perplexity_before"]
    assert notices(run_dir) == []


def test_three_in_a_row_go_back_to_the_checkpoint_at_half_the_rate(
    make_run: MakeRun, inject: Callable[[Fault], None]
) -> None:
    left = [3]

    def fault(step: int, _: int) -> float:
        if step >= 5 and left[0]:
            left[0] -= 1
            return math.inf
        return 1.0

    inject(fault)
    run_dir = make_run("back")
    execute(run_dir)
    assert notices(run_dir) == ["rolled_back"]
    metrics = of_type(run_dir, "Metrics")
    assert [event.step for event in metrics] == list(range(1, 17)), "step 5 is done again, after the return to step 4"
    rates = [learning_rate(HYPERPARAMS, step) for step in range(1, 17)]
    assert [event.lr for event in metrics] == [*rates[:4], *(rate / 2 for rate in rates[4:])]
    steps = [event.step for event in of_type(run_dir, "CheckpointSaved")]
    assert steps == list(range(1, 17)), "nothing is saved while steps are being skipped"
    assert outcome(run_dir).result["perplexity_after"] < outcome(run_dir).result["perplexity_before"]


def test_a_roll_back_is_the_checkpoint_to_the_last_bit(
    make_run: MakeRun, inject: Callable[[Fault], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the rate left alone, going back and on again gives what an undisturbed run gives."""
    undisturbed, disturbed = make_run("undisturbed"), make_run("disturbed")
    execute(undisturbed)
    monkeypatch.setattr("fusion_engine.train._ROLLBACK_RATE", 1.0)
    left = [3]

    def fault(step: int, _: int) -> float:
        left[0] -= step >= 10
        return math.nan if step >= 10 and left[0] >= 0 else 1.0

    inject(fault)
    execute(disturbed)
    assert notices(disturbed) == ["rolled_back"]
    assert exported(disturbed) == exported(undisturbed)


def test_a_loss_that_stays_non_finite_fails_with_its_code(make_run: MakeRun, inject: Callable[[Fault], None]) -> None:
    inject(lambda step, _: math.nan if step >= 5 else 1.0)
    run_dir = make_run("fail")
    execute(run_dir)
    assert notices(run_dir) == ["rolled_back"] * 2
    assert (outcome(run_dir).code, "0.25" in outcome(run_dir).message) == ("nonfinite_loss", True)


def test_a_held_out_loss_that_is_not_finite_leads_back_too(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    calls, evaluate = [0], summary.evaluate

    def faulty(*arguments: Any) -> Any:
        calls[0] += 1
        if calls[0] == 3:  # before training, after step 4, after step 8
            raise RejectedError("nonfinite_loss", "the held-out loss is nan")
        return evaluate(*arguments)

    monkeypatch.setattr(summary, "evaluate", faulty)
    run_dir = make_run("held out")
    execute(run_dir)
    assert notices(run_dir) == ["rolled_back"]
    assert [event.step for event in of_type(run_dir, "Evaluation")] == [0, 4, 8, 12, 16]
    calls[0] = 2
    base = make_run("base")
    execute(base)
    assert outcome(base).code == "nonfinite_loss", "a base that is broken is no matter of rates"


def test_out_of_memory_halves_the_micro_batch_and_keeps_the_arithmetic(
    make_run: MakeRun, inject: Callable[[Fault], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed, halved, first = make_run("undisturbed"), make_run("halved"), make_run("first")
    execute(undisturbed)

    def fault(step: int, rows: int) -> float:
        if step >= 3 and rows > 2:
            raise torch.OutOfMemoryError("injected")
        return 1.0

    inject(fault)
    execute(halved)
    assert notices(halved) == ["micro_batch_halved"]
    assert of_type(halved, "Notice")[0].message.startswith("out of memory at step 3: now 2 rows")
    assert [event.step for event in of_type(halved, "Metrics")] == list(range(1, 17))
    whole, parts = (load_file(folder / "export" / "model.safetensors") for folder in (undisturbed, halved))
    for name, tensor in whole.items():
        torch.testing.assert_close(parts[name], tensor, rtol=1e-3, atol=2e-4)
    request_stop_at(first, 9, "drain", monkeypatch)
    execute(first)
    resumed = make_run("resumed", checkpoint_dir=last_checkpoint(first))
    execute(resumed)
    assert notices(resumed) == [], "the checkpoint remembers the micro-batch"
    assert exported(resumed) == exported(halved)


def test_a_row_that_does_not_fit_fails_with_its_code(make_run: MakeRun, inject: Callable[[Fault], None]) -> None:
    def fault(step: int, _: int) -> float:
        if step >= 3:
            raise torch.OutOfMemoryError("injected")
        return 1.0

    inject(fault)
    run_dir = make_run("too large")
    execute(run_dir)
    assert notices(run_dir) == ["micro_batch_halved"] * 2 + ["activation_checkpointing"]
    assert outcome(run_dir).code == "out_of_memory"


def test_activation_checkpointing_is_chosen_by_memory_and_changes_no_bit(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    plenty, little = make_run("plenty"), make_run("little")
    execute(plenty)
    monkeypatch.setattr(memory, "free_bytes", lambda device: 1)
    execute(little)
    assert (notices(plenty), notices(little)) == ([], ["activation_checkpointing"])
    assert exported(little) == exported(plenty)


def test_saved_bytes_are_those_that_the_backward_pass_needs() -> None:
    weight, x = torch.ones(8, 8, requires_grad=True), torch.ones(4, 8)
    assert memory.saved_bytes((x @ weight).exp) == 4 * 8 * 4, "exp keeps its result"
