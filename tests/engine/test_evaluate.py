"""Perplexities are those of plain transformers, leave no trace, and reach the result with a curve and its plot."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from engine_runs import HYPERPARAMS, MakeRun, exported, last_checkpoint, of_type, outcome, request_stop_at
from fusion_core.trainer_protocol import Evaluation
from fusion_engine import training_curve
from fusion_engine.evaluate import evaluate, evaluation_batches, perplexity
from fusion_engine.files import build_manifest
from fusion_engine.packing import Row
from fusion_engine.progress import LossPoint, Progress
from fusion_engine.run import execute
from fusion_engine.training_curve import TrainingCurve, add_curve
from matplotlib.image import imread


def rows(*lengths: int) -> list[Row]:
    """One document a row, all of it trained."""
    ids = [(np.arange(length, dtype=np.int32) * 5 + number) % 60 for number, length in enumerate(lengths)]
    return [Row(one, np.arange(len(one)) > 0, np.arange(len(one)) == 0) for one in ids]


@torch.no_grad()
def plain_perplexity(model: Any, held: list[Row]) -> float:
    loss, tokens = 0.0, 0
    for row in held:
        ids = torch.from_numpy(row.ids.astype(np.int64))[None]
        loss += float(model(input_ids=ids, labels=ids).loss) * (len(row.ids) - 1)
        tokens += len(row.ids) - 1
    return math.exp(loss / tokens)


@pytest.mark.parametrize("family", ["llama", "gemma2", "falcon_h1"])
def test_perplexity_is_that_of_plain_transformers(family: str, family_maker: Callable[..., Any]) -> None:
    model, held = family_maker(family), rows(9, 17, 4, 12)
    value, tokens = perplexity(model, held, Accelerator(cpu=True))
    assert tokens == 8 + 16 + 3 + 11
    assert value == pytest.approx(plain_perplexity(model, held), rel=1e-5)


def test_a_measurement_leaves_no_trace(family_maker: Callable[..., Any]) -> None:
    model = family_maker("llama", attention_dropout=0.5).train()
    before = torch.get_rng_state()
    values = {perplexity(model, rows(9, 17), Accelerator(cpu=True))[0] for _ in range(3)}
    assert len(values) == 1, "dropout is off"
    assert model.training
    assert torch.equal(torch.get_rng_state(), before)


def test_retention_is_measured_beside_the_held_out_rows(family_maker: Callable[..., Any]) -> None:
    model, held, sampled = family_maker("llama"), rows(9), rows(3, 5)
    measured = evaluate(model, held, sampled, Accelerator(cpu=True))
    assert measured.perplexity == pytest.approx(plain_perplexity(model, held), rel=1e-5)
    assert measured.retention_perplexity == pytest.approx(plain_perplexity(model, sampled), rel=1e-5)
    assert (measured.tokens, measured.retention_tokens) == (8, 6)
    assert evaluate(model, held, None, Accelerator(cpu=True)).retention_perplexity is None


class Rank:
    """What `perplexity` asks of an Accelerator, for one process of several."""

    def __init__(self, process_index: int, num_processes: int) -> None:
        self.process_index, self.num_processes = process_index, num_processes
        self.device, self.sums = torch.device("cpu"), torch.zeros(2)
        self.autocast = torch.enable_grad

    def reduce(self, sums: torch.Tensor, _: str) -> torch.Tensor:
        self.sums = sums
        return sums + torch.tensor([0.0, 1.0])  # no division by zero on an idle rank


def test_every_rank_computes_as_many_batches_and_they_add_up(family_maker: Callable[..., Any]) -> None:
    model, held = family_maker("llama"), rows(*[4097] * 4)
    model.config.max_position_embeddings = 4097
    assert len(evaluation_batches(held)) == 4
    forwards: list[int] = []
    model.get_decoder().register_forward_hook(lambda *_: forwards.append(1))
    ranks = [Rank(number, 3) for number in range(3)]
    counts = []
    for rank in ranks:
        forwards.clear()
        perplexity(model, held, rank)  # type: ignore[arg-type]
        counts.append(len(forwards))
    assert counts == [2, 2, 2]
    loss, tokens = torch.stack([rank.sums for rank in ranks]).sum(0).tolist()
    assert tokens == 4 * 4096
    assert math.exp(loss / tokens) == pytest.approx(perplexity(model, held, Accelerator(cpu=True))[0])


def test_a_result_tells_what_was_learned_and_what_was_kept(make_run: MakeRun, pool: str) -> None:
    run_dir = make_run("run", pool_files=(pool,))
    execute(run_dir)
    result, measured = outcome(run_dir).result, of_type(run_dir, "Evaluation")
    assert [event.retention_tokens for event in measured] == [4 * 15] * 5
    kept = [event.retention_perplexity for event in measured]
    assert (result["retention_perplexity_before"], result["retention_perplexity_after"]) == (kept[0], kept[-1])
    assert result["retention_perplexity"] == {"base": kept[0], "turn_1": kept[2], "turn_2": kept[4]}
    assert result["training_curve"] == {"data": "training_curve.json", "plot": "training_curve.png"}
    curve = msgspec.json.decode((run_dir / "export" / "training_curve.json").read_bytes(), type=TrainingCurve)
    assert list(curve.evaluations) == measured
    assert [point.step for point in curve.losses] == list(range(1, 17))
    metrics = {event.step: event.loss for event in of_type(run_dir, "Metrics")}
    assert {point.step: point.loss for point in curve.losses} == metrics
    image = imread(run_dir / "export" / "training_curve.png")
    assert image.shape[:2] == (600, 900)
    assert len(np.unique(image.reshape(-1, image.shape[2]), axis=0)) > 20, "something is drawn"
    saved = of_type(run_dir, "ExportSaved")[0].manifest
    assert saved == build_manifest(run_dir / "export")


def test_without_a_pool_there_is_no_retention(make_run: MakeRun) -> None:
    run_dir = make_run("run", hyperparams=msgspec.structs.replace(HYPERPARAMS, turns=1))
    execute(run_dir)
    result = outcome(run_dir).result
    assert result["retention_perplexity_before"] is result["retention_perplexity_after"] is None
    assert result["retention_perplexity"] == {}


def test_a_resumed_job_has_the_same_curve(make_run: MakeRun, pool: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, first = make_run("whole", pool_files=(pool,)), make_run("first", pool_files=(pool,))
    execute(whole)
    with monkeypatch.context() as patch:
        request_stop_at(first, 6, "drain", patch)
        execute(first)
    second = make_run("second", pool_files=(pool,), checkpoint_dir=last_checkpoint(first))
    execute(second)
    assert exported(second) == exported(whole)
    assert outcome(second).result == outcome(whole).result


def test_a_long_job_has_a_curve_of_means() -> None:
    progress = Progress()
    for step in range(1, 1001):
        progress.step = step
        if step != 500:  # a step that was skipped
            progress.record_loss(float(step), 1000)
    assert len(progress.losses) == 334
    assert progress.losses[0] == LossPoint(3, 2.0, 3)
    assert progress.losses[166] == LossPoint(501, 500.0, 2)
    assert progress.losses[-1] == LossPoint(1000, 1000.0, 1)
    assert sum(point.loss * point.steps for point in progress.losses) == pytest.approx(1000 * 1001 / 2 - 500)


def test_the_data_goes_with_the_model_where_nothing_can_be_plotted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_curve, "_can_plot", lambda: False)
    (tmp_path / "config.json").write_text("{}")
    progress = Progress(evaluations=[Evaluation(step=0, turn=0, perplexity=2.0, tokens=9)])
    manifest = add_curve(tmp_path, build_manifest(tmp_path), progress)
    assert [file.rel for file in manifest.files] == ["config.json", "training_curve.json"]
    assert manifest == build_manifest(tmp_path)
    assert training_curve.curve_files() == {"data": "training_curve.json", "plot": None}
