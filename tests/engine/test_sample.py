"""Sample jobs: a pool is a function of model, counts and seed; its rows look like the base's own text."""

from pathlib import Path
from typing import Any

import pytest
import torch
from fusion_core.trainer_protocol import EventReader, Finished, Rejected, SampleRun, ShardSaved, write_run
from fusion_engine.base_folder import load_model, open_base
from fusion_engine.run import execute
from fusion_engine.sample import ROWS_PER_BATCH, read_pool, sample_batch, start_id
from safetensors.torch import load_file, save_file


def sample(folder: Path, base: Path, **fields: Any) -> Path:
    folder.mkdir()
    settings = {"rows": ROWS_PER_BATCH + 3, "seq_len": 24, "seed": 7, **fields}
    write_run(folder, SampleRun(job_id="0190", lease_epoch=1, base_dir=str(base), **settings))
    execute(folder)
    return folder


def events(folder: Path) -> list[Any]:
    return [event for _, event in EventReader(folder).read()]


def test_a_sample_job_writes_a_pool_of_the_asked_size_and_reports_it(tiny_base: Path, tmp_path: Path) -> None:
    folder = sample(tmp_path / "one", tiny_base)
    saved = next(event for event in events(folder) if isinstance(event, ShardSaved))
    assert (saved.rows, saved.file.rel) == (ROWS_PER_BATCH + 3, "pool.jsonl")
    pool = list(read_pool((saved.path,)))
    assert [len(ids) for ids in pool] == [24] * (ROWS_PER_BATCH + 3)
    assert len({tuple(ids) for ids in pool}) == len(pool)
    assert events(folder)[-1] == Finished(result={"rows": ROWS_PER_BATCH + 3, "tokens": (ROWS_PER_BATCH + 3) * 24})


def test_two_sample_jobs_write_the_same_bytes_and_another_seed_writes_others(tiny_base: Path, tmp_path: Path) -> None:
    pools = [
        (sample(tmp_path / name, tiny_base, seed=seed) / "pool" / "pool.jsonl").read_bytes()
        for name, seed in (("first", 7), ("second", 7), ("third", 8))
    ]
    assert pools[0] == pools[1] != pools[2]


def test_samples_follow_the_bases_own_distribution(tiny_base: Path) -> None:
    """The second ids of 4096 rows are spread as the base's softmax says; a top-k, a top-p or a temperature is not."""
    model, first = load_model(tiny_base, torch.float32).eval(), start_id(open_base(tiny_base))
    with torch.no_grad():
        expected = model(input_ids=torch.tensor([[first]])).logits[0, -1].softmax(-1)
    drawn = torch.from_numpy(sample_batch(model, first, 4096, 2, seed=0)[:, 1]).long()
    found = torch.bincount(drawn, minlength=len(expected)) / len(drawn)
    chi_square = float((len(drawn) * (found - expected) ** 2 / expected).sum())
    assert chi_square < len(expected) + 5 * (2 * len(expected)) ** 0.5


def test_a_base_with_weights_that_are_no_numbers_is_refused(copy_base: Path, tmp_path: Path) -> None:
    weights = load_file(copy_base / "model.safetensors")
    weights["model.layers.1.self_attn.q_proj.weight"][3, 2] = float("nan")
    save_file(weights, copy_base / "model.safetensors", metadata={"format": "pt"})
    found = events(sample(tmp_path / "run", copy_base))[-1]
    assert isinstance(found, Rejected)
    assert found.code == "base_model_corrupt"
    assert "model.layers.1.self_attn.q_proj.weight" in found.message


def test_an_eos_does_not_end_a_row(tiny_base: Path) -> None:
    model = load_model(tiny_base, torch.float32).eval()
    rows = sample_batch(model, 1, ROWS_PER_BATCH, 40, seed=0)
    assert rows.shape == (ROWS_PER_BATCH, 40)
    assert (rows[:, 1:-1] == 1).any()  # an EOS was drawn, and text follows it


@pytest.mark.parametrize("seq_len", [129, 4096])
def test_rows_longer_than_the_models_positions_are_refused(tiny_base: Path, tmp_path: Path, seq_len: int) -> None:
    outcome = events(sample(tmp_path / "long", tiny_base, seq_len=seq_len))[-1]
    assert isinstance(outcome, Rejected)
    assert "use 128" in outcome.message
