"""A worker of two processes (gloo) that shards its models (FSDP2) trains what one trains that replicates them (DDP)."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(500)]
FSDP2 = {"num_processes": 2, "sharding": "fsdp2"}


@pytest.fixture
def start(platform: Any) -> Iterator[Callable[..., str]]:
    """start(**settings) -> the name of the only worker that trains."""
    started: list[str] = []

    def start(**settings: object) -> str:
        for name in started:
            platform.stack.processes.stop(name)
        started[:] = [platform.start_worker("training", **settings)]
        return started[0]

    yield start
    for name in started:
        platform.stack.processes.stop(name)


def tensors(platform: Any, job: Any, folder: Path) -> dict[str, torch.Tensor]:
    platform.client.download_model(job.output_model_id, folder)
    return load_file(folder / "model.safetensors")


def test_a_sharded_job_gives_the_replicated_model_and_resumes_to_the_same_bytes(
    platform: Any, start: Callable[..., str], tmp_path: Path
) -> None:
    start(num_processes=2)
    replicated = platform.completed(platform.submit("replicated"))
    start(**FSDP2)
    sharded = platform.completed(platform.submit("sharded"))
    assert platform.client.result(sharded.id).reproducibility["world_size"] == 2
    expected, found = (tensors(platform, job, tmp_path / job.id) for job in (replicated, sharded))
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():  # the bound of tests/engine/test_processes.py: another order of additions
        torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=2e-4)

    job_id = platform.submit("sharded-killed")
    platform.wait(job_id, lambda job: 0 < job.last_checkpoint_step < 20)
    trainers = platform.trainers()
    assert {process.environ().get("ACCELERATE_USE_FSDP") for process in trainers} == {"true"}
    for process in trainers:
        process.kill()
    psutil.wait_procs(trainers, timeout=20)
    killed = platform.completed(job_id)
    assert killed.retries == 1
    assert platform.exported(killed) == platform.exported(sharded)


def test_a_job_whose_weights_must_go_back_is_refused_with_its_reason(platform: Any, start: Callable[..., str]) -> None:
    start(**FSDP2)
    job = platform.wait(platform.submit("back", retain=0.5), lambda job: job.finished_at is not None)
    assert (job.status, job.error.code) == ("failed", "validation_failed")
    assert "retain" in job.error.message


def test_fine_tuning_and_contraction_are_sharded_too(platform: Any, start: Callable[..., str]) -> None:
    start(**FSDP2)
    small = {"seq_len": 16, "batch_size": 2, "lr": 0.01}
    settings = small | {"lora_rank": 4, "steps": 30, "output_name": "finetuned"}
    body = {"type": "finetune", "base_model_id": platform.base_model_id, "dataset_id": platform.dataset_id}
    finetuned = platform.completed(platform.client.submit(body | {"hyperparams": settings}).id, 200)
    result = platform.client.result(finetuned.id)
    assert result.perplexity_after < result.perplexity_before
    settings = {"source_model_id": finetuned.output_model_id, "contraction_ratio": 0.5, "num_layers_to_contract": 2}
    settings |= small | {"train_steps": 6, "output_name": "contracted"}
    body = {"type": "contract", "dataset_id": platform.dataset_id, "hyperparams": settings}
    contracted = platform.completed(platform.client.submit(body).id, 200)
    assert platform.client.result(contracted.id).reproducibility["world_size"] == 2
