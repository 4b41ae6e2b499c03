"""What a trainer is given, and that nothing of it survives."""

import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import psutil
import pytest
from fusion_core.trainer_protocol import IngestRun
from fusion_worker.settings import WorkerSettings
from fusion_worker.trainer_process import TrainerProcess, command, environment, kill_strays

SETTINGS = WorkerSettings(
    database_url="postgresql://user:password@host/database",
    s3_endpoint="http://s3",
    s3_access_key="access",
    s3_secret_key="secret",
    redis_url="redis://host",
    device="cpu",
    threads=3,
)
RUN = IngestRun(job_id="job", lease_epoch=1, inputs=())
# A parent that starts a child in a session of its own and tells its number.
PARENT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
open(sys.argv[1] + "/child", "w").write(str(child.pid))
{then}
"""


def is_running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def child_of(folder: Path) -> int:
    until = time.monotonic() + 20
    while not (folder / "child").exists() or not (folder / "child").read_text():
        assert time.monotonic() < until
        time.sleep(0.02)
    return int((folder / "child").read_text())


def start_parent(folder: Path, then: str) -> "subprocess.Popen[bytes]":
    argv = [sys.executable, "-c", PARENT.format(then=then), str(folder)]
    return subprocess.Popen(argv, env=environment(SETTINGS, folder), start_new_session=True)


def test_a_child_in_another_session_is_killed_with_its_parent(run_dir: Path) -> None:
    parent = start_parent(run_dir, "time.sleep(60)")
    child = child_of(run_dir)
    kill_strays(run_dir)
    assert not is_running(parent.pid)
    assert not is_running(child)
    parent.wait(10)


def test_an_orphan_that_names_no_folder_is_found(run_dir: Path) -> None:
    """Its parent, which named it, is dead already."""
    parent = start_parent(run_dir, "")
    child = child_of(run_dir)
    assert parent.wait(10) == 0
    assert is_running(child)
    kill_strays(run_dir)
    assert not is_running(child)


def test_processes_of_other_runs_are_spared(run_dir: Path) -> None:
    other = run_dir.with_name("run-2")
    other.mkdir()
    parent = start_parent(other, "time.sleep(60)")
    try:
        child = child_of(other)
        kill_strays(run_dir)
        assert is_running(parent.pid)
        assert is_running(child)
    finally:
        kill_strays(other)
        parent.wait(10)


def test_a_trainer_inherits_no_setting_and_no_credential(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUSION_S3_SECRET_KEY", "secret")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("DATABASE_URL", "secret")
    given = environment(SETTINGS, run_dir)
    assert not [name for name in given if name.startswith(("FUSION_S3", "FUSION_DATABASE", "AWS", "DATABASE"))]
    assert "secret" not in given.values()
    assert (given["OMP_NUM_THREADS"], given["CUDA_VISIBLE_DEVICES"]) == ("3", "")
    assert given["PATH"] == os.environ["PATH"]


def test_a_dataset_is_read_without_the_launcher(run_dir: Path) -> None:
    assert command(RUN, run_dir, SETTINGS)[1:] == ["-m", "fusion_data", "ingest", str(run_dir)]


def test_a_trainer_shards_where_its_daemon_says_so_alone(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert "ACCELERATE_USE_FSDP" not in environment(SETTINGS, run_dir)
    given = environment(msgspec.structs.replace(SETTINGS, num_processes=2, sharding="fsdp2"), run_dir)
    assert (given["ACCELERATE_USE_FSDP"], given["FSDP_VERSION"]) == ("true", "2")


async def test_the_log_tail_is_the_end_of_what_was_printed(run_dir: Path) -> None:
    printing = f"{sys.executable} -c \"print('x' * 9000); print('last')\""
    settings = msgspec.structs.replace(SETTINGS, trainer_command=printing)
    trainer = await TrainerProcess.launch(RUN, run_dir, settings)
    assert await trainer.wait() == 0
    assert trainer.log_tail().endswith("x\nlast")
    assert len(trainer.log_tail()) < 5000


async def test_what_a_trainer_puts_aside_lies_in_its_run(run_dir: Path) -> None:
    program = "import tempfile; print(tempfile.mkdtemp())"
    settings = msgspec.structs.replace(SETTINGS, trainer_command=shlex.join([sys.executable, "-c", program]))
    trainer = await TrainerProcess.launch(RUN, run_dir, settings)
    assert await trainer.wait() == 0
    assert Path(trainer.log_tail()).parent == run_dir / "tmp"


def test_the_daemon_does_not_know_torch() -> None:
    code = "import sys, fusion_worker.daemon; sys.exit(any(n in sys.modules for n in ('torch', 'transformers')))"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
