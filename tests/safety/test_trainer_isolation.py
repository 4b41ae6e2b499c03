"""What a trainer that was taken over can reach: a real one looks."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from fusion_core.settings import SettingsError
from fusion_core.trainer_protocol import EventReader, IngestRun, Rejected, write_run
from fusion_local.processes import Processes
from fusion_worker.confinement import TrainerUser
from fusion_worker.settings import WorkerSettings
from fusion_worker.trainer_process import TrainerProcess, kill_strays

from tests.integration.worker.conftest import Site

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="prctl(2) and users are tested on Linux")
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="another user needs root")
HERE = Path(__file__).parent
PYTHON = "/usr/bin/python3"  # one that every user may start
SECRETS = {
    "FUSION_DATABASE_URL": "postgresql://u:first-secret@h/d",
    "FUSION_S3_SECRET_KEY": "second-secret",
    "FUSION_REDIS_URL": "redis://:third-secret@h",
}
OTHERS = {"FUSION_S3_ENDPOINT": "http://s3", "FUSION_S3_ACCESS_KEY": "fourth-secret", "FUSION_DEVICE": "cpu"}


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user may pass, as pytest's own are not."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o711)
    shutil.copy(HERE / "snoop.py", folder)
    (folder / "snoop.py").chmod(0o644)
    yield folder
    shutil.rmtree(folder)


def outcome_of(run_dir: Path) -> dict[str, Any]:
    """What the snoop found."""
    outcome = [event for _, event in EventReader(run_dir).read()][-1]
    assert isinstance(outcome, Rejected)
    found: dict[str, Any] = json.loads(outcome.message)
    return found


def settings_for(folder: Path, **changes: Any) -> WorkerSettings:
    secrets = {name.removeprefix("FUSION_").lower(): value for name, value in (SECRETS | OTHERS).items()}
    return WorkerSettings(
        **secrets | {"work_dir": str(folder), "trainer_command": f"{PYTHON} {folder}/snoop.py"} | changes
    )


@as_root
async def test_a_trainer_of_its_own_user_reaches_its_run_alone(
    site: Site, open_folder: Path, processes: Processes, worker_environment: dict[str, str]
) -> None:
    """A whole attempt of the real daemon: it stages, launches, follows and takes the outcome."""
    own = {
        "FUSION_TRAINER_USER": "nobody",
        "FUSION_WORK_DIR": str(open_folder),
        "FUSION_TRAINER_COMMAND": f"{PYTHON} {open_folder}/snoop.py",
    }
    processes.start("worker", [sys.executable, "-m", "fusion_worker"], env=worker_environment | own)
    job = await site.reaches(await site.train(), "failed")
    assert job.error is not None
    found = json.loads(job.error["message"])
    nobody = TrainerUser.find("nobody")
    assert nobody is not None
    assert found["user"] == [nobody.uid, nobody.gid, list(nobody.groups)]
    for kept in ("parent_environ", "parent_memory", "parent_files", "other_runs", "cache", "changed_input"):
        assert found[kept] == {"refused": "Permission denied"}, kept
    secrets = [value for name, value in worker_environment.items() if name.endswith(("_URL", "_KEY"))]
    assert len(secrets) >= 4
    assert not any(secret in json.dumps(found) for secret in secrets)
    assert found["new_privileges"] == "1"
    assert (found["limits"]["CORE"], found["limits"]["NPROC"]) == ([0, 0], [16_384, 16_384])


@pytest.mark.parametrize("mode", ["hidden", "open"])
def test_a_trainer_of_the_daemons_user_cannot_read_its_secrets(open_folder: Path, mode: str) -> None:
    """`open` is the daemon without its protection, and shows that there is something to protect."""
    run_dir = open_folder / "runs" / "job-1"
    run_dir.mkdir(parents=True)
    if os.geteuid() == 0:
        for folder in (run_dir.parent, run_dir):
            shutil.chown(folder, "nobody")
    command = {"FUSION_TRAINER_COMMAND": f"{PYTHON} {open_folder}/snoop.py", "FUSION_WORK_DIR": str(open_folder)}
    argv = [sys.executable, str(HERE / "unprivileged_daemon.py"), str(run_dir), mode]
    done = subprocess.run(
        argv,
        env={"PATH": os.environ["PATH"]} | SECRETS | OTHERS | command,
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    found = outcome_of(run_dir)
    assert not any("secret" in value for value in found["environ"].values())
    if mode == "open":
        assert "first-secret" in found["parent_environ"]["got"]
    else:
        assert "refused" in found["parent_environ"]
        assert "refused" in found["parent_memory"]
        assert "secret" not in json.dumps(found)


@as_root
async def test_a_trainer_of_its_own_user_is_killed_whole(open_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer, run_dir = await launched(open_folder, monkeypatch, "sleep", trainer_user="nobody")
    running = [
        process for process in psutil.process_iter(["cmdline"]) if str(run_dir) in (process.info["cmdline"] or ())
    ]
    assert [process.username() for process in running] == ["nobody"]
    await trainer.kill()
    assert trainer.returncode is not None
    assert not any(process.is_running() for process in running)


@as_root
async def test_strays_of_another_user_are_found(open_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer, run_dir = await launched(open_folder, monkeypatch, "sleep", trainer_user="nobody")
    kill_strays(run_dir.parent)
    assert await trainer.wait() != 0  # psutil may have taken the status before asyncio


@as_root
def test_a_trainer_of_another_user_dies_with_its_daemon(open_folder: Path) -> None:
    """Taking another user forgets the wish to die with the parent: the order in the child matters."""
    code = (
        "import os, time; from functools import partial; import subprocess; "
        "from fusion_worker.confinement import TrainerUser, confine; user = TrainerUser.find('nobody'); "
        "child = subprocess.Popen(['sleep', '60'], preexec_fn=partial(confine, network=True, own_user=True), "
        "**user.launch_options()); print(child.pid, flush=True); os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    child = int(done.stdout)
    with contextlib.suppress(psutil.NoSuchProcess):
        psutil.Process(child).wait(20)


async def launched(
    folder: Path, monkeypatch: pytest.MonkeyPatch, snoop: str, **changes: Any
) -> tuple[TrainerProcess, Path]:
    """A snoop that has written its outcome."""
    monkeypatch.setenv("TORCH_SNOOP", snoop)
    run_dir = folder / "runs" / "job-1"
    run_dir.mkdir(parents=True)
    (folder / "cache").mkdir()
    run = IngestRun(job_id="job", lease_epoch=1, inputs=())
    write_run(run_dir, run)
    trainer = await TrainerProcess.launch(run, run_dir, settings_for(folder, **changes))
    deadline = time.monotonic() + 30
    while not list(EventReader(run_dir).read()):
        assert time.monotonic() < deadline, trainer.log_tail()
        assert trainer.returncode is None or list(EventReader(run_dir).read()), trainer.log_tail()
        time.sleep(0.05)
    return trainer, run_dir


@pytest.mark.skipif(
    subprocess.run(["unshare", "--user", "--net", "true"], check=False, capture_output=True).returncode != 0,
    reason="this kernel lets no ordinary user make a network of its own",
)
async def test_reading_a_dataset_has_no_network(open_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port), timeout=5):
            pass
        trainer, run_dir = await launched(open_folder, monkeypatch, f"address=127.0.0.1:{port}")
        assert await trainer.wait() == 0
        assert outcome_of(run_dir) == {"network": {"refused": "Network is unreachable"}}


@pytest.mark.parametrize(("name", "words"), [("nobody-at-all", "there is no user"), ("root", "root is the user")])
@as_root
def test_a_trainer_user_that_cannot_be_is_a_bad_setting(name: str, words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        TrainerUser.find(name)
