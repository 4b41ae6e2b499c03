"""Fine-tuning, contraction, and going on from an older checkpoint, through every process and the real engine."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(500)]
SMALL = {"seq_len": 16, "batch_size": 2, "lr": 0.01}


def download(platform: Any, model_id: str, folder: Path) -> Any:
    """The published model, as any tool loads it."""
    platform.client.download_model(model_id, folder)
    return AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)


def weights(platform: Any, job: Any) -> dict[str, str]:
    return {rel: sha256 for rel, sha256 in platform.exported(job).items() if rel.endswith(".safetensors")}


@pytest.fixture(scope="module")
def worker(platform: Any) -> Any:
    name = platform.start_worker("training")
    yield name
    platform.stack.processes.stop(name)


@pytest.fixture(scope="module")
def finetuned(platform: Any, worker: str) -> Any:
    body = {"type": "finetune", "base_model_id": platform.base_model_id, "dataset_id": platform.dataset_id}
    settings = SMALL | {"lora_rank": 4, "steps": 30, "output_name": "finetuned"}
    return platform.completed(platform.client.submit(body | {"hyperparams": settings}).id, 200)


async def test_a_finetuned_model_keeps_its_size_and_learns(platform: Any, finetuned: Any, tmp_path: Path) -> None:
    result = platform.client.result(finetuned.id)
    assert result.params_before == result.params_after == finetuned.params_after
    assert result.perplexity_after < result.perplexity_before
    assert result.tokens == 30 * 2 * 16
    assert result.cost_usd == finetuned.estimate.total_usd == 2.0
    assert await platform.ledger(finetuned.id) == [2_000_000]
    model = download(platform, finetuned.output_model_id, tmp_path / "model")
    assert sum(parameter.numel() for parameter in model.parameters()) == result.params_after
    logits = model(torch.arange(8)[None]).logits
    assert torch.isfinite(logits).all()


async def test_a_contracted_model_is_smaller_and_its_source_stays(
    platform: Any, finetuned: Any, tmp_path: Path
) -> None:
    before = platform.exported(finetuned)
    settings = {"source_model_id": finetuned.output_model_id, "contraction_ratio": 0.5, "num_layers_to_contract": 2}
    settings |= SMALL | {"train_steps": 6, "output_name": "contracted"}
    body = {"type": "contract", "dataset_id": platform.dataset_id, "hyperparams": settings}
    job = platform.completed(platform.client.submit(body).id, 200)
    result = platform.client.result(job.id)
    assert result.params_after < result.params_before == finetuned.params_after
    assert set(result.perplexity) == {"source", "pruned", "healed"}
    assert await platform.ledger(job.id) == [9_000_000]
    model = download(platform, job.output_model_id, tmp_path / "model")
    assert sum(parameter.numel() for parameter in model.parameters()) == result.params_after
    assert torch.isfinite(model(torch.arange(8)[None]).logits).all()
    assert platform.exported(finetuned) == before


def test_a_job_that_goes_on_from_an_older_checkpoint_makes_the_same_weights(platform: Any, worker: str) -> None:
    steps = {"turns": 1, "cycles": 2, "train_steps": 400}
    job_id = platform.submit("stopped", **steps)
    platform.wait(job_id, lambda job: job.last_checkpoint_step >= 3)
    platform.client.stop_job(job_id)
    stopped = platform.wait(job_id, lambda job: job.status == "stopped")
    assert stopped.last_checkpoint_step < 400, "the stop must have come before the end"
    oldest = platform.client.list_checkpoints(job_id)[-1]
    beside = platform.client.resume_job(job_id, oldest.id)
    assert (beside.id != job_id, beside.resumed_from, beside.start_step) == (True, job_id, oldest.step)
    assert platform.client.resume_job(job_id).id == job_id
    first, second = platform.completed(job_id, 300), platform.completed(beside.id, 300)
    assert weights(platform, first) == weights(platform, second)
    assert platform.client.result(second.id).perplexity_after == platform.client.result(first.id).perplexity_after
