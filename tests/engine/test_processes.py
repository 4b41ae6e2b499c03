"""Two processes on CPU (gloo): they train one model, resume to the same bytes, and agree about a fault of one."""

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_ranks import Ranks
from engine_runs import HYPERPARAMS, MakeRun, exported, last_checkpoint, of_type, outcome
from fusion_core.job_spec import FinetuneHyperparams, Hyperparams
from fusion_core.trainer_protocol import EngineRun, FinetuneRun, read_run, write_run
from fusion_engine.run import execute
from msgspec.structs import replace
from safetensors.torch import load_file

SETTINGS = [replace(HYPERPARAMS, train_scope=scope, own_head=False) for scope in ("new", "all")]
SETTINGS.append(replace(HYPERPARAMS, growth_factor=2.0, own_head=True))
SETTINGS_NAMES = ["new", "all", "own-head"]
ADAPTERS = FinetuneHyperparams(lora_rank=4, steps=12, lr=1e-2, seq_len=16, batch_size=4, replay_fraction=0.25)


@pytest.mark.parametrize("settings", SETTINGS, ids=SETTINGS_NAMES)
def test_two_processes_train_one_model_and_resume_to_the_same_bytes(
    make_run: MakeRun, ranks: Ranks, pool: str, settings: Hyperparams
) -> None:
    fields: dict[str, Any] = {"hyperparams": settings, "num_processes": 2, "pool_files": (pool,)}
    whole, killed = (make_run(name, **fields) for name in ("whole", "killed"))
    finished = ranks.attempt(whole)
    assert finished.returncode == 0, finished.stderr
    result = outcome(whole).result
    assert result["reproducibility"]["world_size"] == 2
    assert result["perplexity_after"] < result["perplexity_before"]
    assert ranks.attempt(killed, FUSION_FAILPOINT="step:7").returncode != 0
    resumed = make_run("resumed", checkpoint_dir=last_checkpoint(killed), **fields)
    finished = ranks.attempt(resumed)
    assert finished.returncode == 0, finished.stderr
    assert exported(resumed) == exported(whole)
    assert outcome(resumed).result == result


@pytest.mark.parametrize("kind", ["width", "finetune"])
def test_two_processes_of_other_kinds_resume_to_the_same_bytes(
    make_run: MakeRun, pool: str, kind: str, ranks: Ranks
) -> None:
    def make(name: str, **fields: Any) -> Path:
        settings = replace(HYPERPARAMS, growth_axis="width")
        run_dir = make_run(name, hyperparams=settings, num_processes=2, pool_files=(pool,), **fields)
        if kind == "finetune":
            shared = {field: getattr(read_run(run_dir), field) for field in EngineRun.__struct_fields__}
            write_run(run_dir, FinetuneRun(hyperparams=ADAPTERS, **shared))
        return run_dir

    whole, killed = make("whole"), make("killed")
    finished = ranks.attempt(whole)
    assert finished.returncode == 0, finished.stderr
    assert ranks.attempt(killed, FUSION_FAILPOINT="step:7").returncode != 0
    resumed = make("resumed", checkpoint_dir=last_checkpoint(killed))
    assert ranks.attempt(resumed).returncode == 0
    assert outcome(resumed).result == outcome(whole).result
    assert exported(resumed) == exported(whole)


def test_two_machines_without_a_common_disk_train_the_bytes_of_one_with_two_processes(
    make_run: MakeRun, ranks: Ranks
) -> None:
    one, leader, follower = (make_run(name, num_processes=2) for name in ("one", "leader", "follower"))
    assert ranks.attempt(one).returncode == 0
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc_per_node=1"]
    launcher += ["--master_addr=127.0.0.1", f"--master_port={port}"]
    env = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    nodes = [
        subprocess.Popen([*launcher, f"--node_rank={rank}", "-m", "fusion_engine", str(run_dir)], env=env)
        for rank, run_dir in enumerate((leader, follower))
    ]
    try:
        assert [node.wait(timeout=200) for node in nodes] == [0, 0]
    finally:
        for node in nodes:
            node.kill()
    assert exported(leader) == exported(one)
    assert not (follower / "events.jsonl").exists()


def test_the_wrong_number_of_processes_is_refused(make_run: MakeRun) -> None:
    with pytest.raises(ValueError, match=r"run\.json asks for 2"):
        execute(make_run("alone", num_processes=2))


def test_a_fault_of_one_process_is_met_by_both(make_run: MakeRun, ranks: Ranks) -> None:
    run_dir = make_run("faulty", num_processes=2)
    finished = ranks.launch(run_dir, str(Path(__file__).with_name("faulty_attempt.py")), str(run_dir))
    assert finished.returncode == 0, finished.stderr
    assert [event.code for event in of_type(run_dir, "Notice")] == ["micro_batch_halved", "rolled_back"]
    assert [event.step for event in of_type(run_dir, "Metrics")] == list(range(1, 17))
    assert outcome(run_dir).result["perplexity_after"] < outcome(run_dir).result["perplexity_before"]


@pytest.mark.parametrize("settings", SETTINGS, ids=SETTINGS_NAMES)
def test_shards_of_fsdp2_train_the_same_model_and_resume_to_the_same_bytes(
    make_run: MakeRun, ranks: Ranks, pool: str, settings: Hyperparams
) -> None:
    fields: dict[str, Any] = {"hyperparams": settings, "num_processes": 2, "pool_files": (pool,)}
    names = ("replicated", "sharded", "killed")
    replicated, sharded, killed = (make_run(name, **fields) for name in names)
    program = str(Path(__file__).with_name("sharded_attempt.py"))
    assert ranks.attempt(replicated).returncode == 0
    finished = ranks.launch(sharded, program, str(sharded), ACCELERATE_USE_FSDP="true", FSDP_VERSION="2")
    assert finished.returncode == 0, finished.stderr
    held, total = (int(word) for word in (sharded / "held-0").read_text().split())
    assert held < 0.6 * total, "each process holds its part"
    whole, parts = (load_file(folder / "export" / "model.safetensors") for folder in (replicated, sharded))
    for name, tensor in whole.items():
        torch.testing.assert_close(parts[name], tensor, rtol=1e-3, atol=2e-4)
    fsdp = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
    assert ranks.attempt(killed, FUSION_FAILPOINT="step:7", **fsdp).returncode != 0
    resumed = make_run("resumed", checkpoint_dir=last_checkpoint(killed), **fields)
    finished = ranks.attempt(resumed, **fsdp)
    assert finished.returncode == 0, finished.stderr
    assert exported(resumed) == exported(sharded)
