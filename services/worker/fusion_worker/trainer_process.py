"""The trainer as a process tree: launched with nothing it should not have, and killed whole."""

import asyncio
import contextlib
import os
import shlex
import sys
from functools import partial
from pathlib import Path

import psutil
import structlog
from fusion_core.stack_dump import DUMP_SIGNAL
from fusion_core.trainer_protocol import IngestRun, Run
from fusion_core.untrusted_files import UntrustedPathError, open_untrusted

from fusion_worker.confinement import TrainerUser, confine
from fusion_worker.settings import WorkerSettings

log = structlog.get_logger()
LOG_FILE = "trainer.log"
KILL_DEADLINE_S = 30.0
DUMP_S = 2.0
TAIL_BYTES = 4000
# What a trainer may inherit: no credentials, no addresses.
_ALLOWED = (
    "PATH",
    "HOME",
    "LANG",
    "LC_ALL",
    "LD_LIBRARY_PATH",
    "PYTHONPATH",
    "VIRTUAL_ENV",
    "FUSION_FAILPOINT",
)
_ALLOWED_PREFIXES = ("CUDA_", "NVIDIA_", "NCCL_", "GLOO_", "TORCH")
_FSDP2 = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}  # as `accelerate launch --use_fsdp --fsdp_version 2` does
# Set for every trainer and inherited by all it starts: an orphan of any session or folder is known by it.
RUN_DIR_VARIABLE = "FUSION_RUN_DIR"
TEMPORARY_FOLDER = "tmp"  # of a run, and gone with it: a launcher that is killed leaves its own behind


def command(run: Run, run_dir: Path, settings: WorkerSettings) -> list[str]:
    """How the trainer of this run is started."""
    if settings.trainer_command:
        return [*shlex.split(settings.trainer_command), str(run_dir)]
    if isinstance(run, IngestRun):
        return [sys.executable, "-m", "fusion_data", "ingest", str(run_dir)]
    if settings.nodes > 1:
        launcher = ["torch.distributed.run", f"--nnodes={settings.nodes}", f"--node_rank={settings.node_rank}"]
        launcher += [f"--master_addr={settings.leader_host}", f"--master_port={settings.rendezvous_port}"]
        launcher += [f"--nproc_per_node={settings.num_processes}"]
    elif settings.num_processes > 1:  # accelerate's launcher with --cpu runs one process whatever it is asked for
        launcher = ["torch.distributed.run", "--standalone", f"--nproc_per_node={settings.num_processes}"]
    else:
        launcher = ["accelerate.commands.launch", "--num_processes=1", "--num_machines=1"]
        launcher += ["--mixed_precision=no", "--dynamo_backend=no"]
        launcher += ["--cpu"] if settings.device == "cpu" else []
    return [sys.executable, "-m", *launcher, "-m", "fusion_engine", str(run_dir)]


def environment(settings: WorkerSettings, run_dir: Path) -> dict[str, str]:
    """All that a trainer and its children see of the daemon's environment."""
    threads = str(settings.threads)
    fixed = {
        RUN_DIR_VARIABLE: str(run_dir),
        "TMPDIR": str(run_dir / TEMPORARY_FOLDER),
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # deterministic matrix products (torch.use_deterministic_algorithms)
        "PYTHONUNBUFFERED": "1",
    }
    if settings.sharding == "fsdp2":
        fixed |= _FSDP2
    if settings.device == "cpu":
        fixed["CUDA_VISIBLE_DEVICES"] = ""
    return _inherited() | fixed


def visible_devices() -> str | None:
    """CUDA_VISIBLE_DEVICES of the trainers that this daemon starts; None: all of the machine."""
    return _inherited().get("CUDA_VISIBLE_DEVICES")


def _inherited() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name in _ALLOWED or name.startswith(_ALLOWED_PREFIXES)}


class TrainerProcess:
    """A running trainer. `kill` leaves nothing of it, in whatever session its parts are."""

    def __init__(self, process: asyncio.subprocess.Process, run_dir: Path) -> None:
        self._process = process
        self._run_dir = run_dir

    @classmethod
    async def launch(cls, run: Run, run_dir: Path, settings: WorkerSettings) -> "TrainerProcess":
        """Output goes to a file: a pipe held by a grandchild would keep us waiting."""
        argv = command(run, run_dir, settings)
        user = TrainerUser.find(settings.trainer_user)
        env = environment(settings, run_dir)
        (run_dir / TEMPORARY_FOLDER).mkdir(exist_ok=True)
        with (run_dir / LOG_FILE).open("ab") as output:
            if user is not None:
                user.hand_over(run_dir, Path(settings.work_dir))
                env["HOME"] = str(run_dir)
            process = await asyncio.create_subprocess_exec(
                *argv,
                cwd=run_dir,
                env=env,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                preexec_fn=partial(confine, network=not isinstance(run, IngestRun), own_user=user is not None),
                **(user.launch_options() if user is not None else {}),
            )
        log.info("trainer_launched", pid=process.pid, command=argv[:5])
        return cls(process, run_dir)

    @property
    def returncode(self) -> int | None:
        return self._process.returncode

    async def wait(self) -> int:
        return await self._process.wait()

    async def kill(self) -> None:
        """SIGKILL the whole tree and wait until it is gone."""
        await asyncio.to_thread(kill_strays, self._run_dir)
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        async with asyncio.timeout(KILL_DEADLINE_S):
            await self._process.wait()

    async def dump_stacks(self) -> None:
        """Have every process that can write what its threads are doing into the log; those that cannot stay silent."""
        for process in _family(self._run_dir):
            if _catches_dump_signal(process.pid):
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.send_signal(DUMP_SIGNAL)
        await asyncio.sleep(DUMP_S)

    def log_tail(self) -> str:
        """The end of what the trainer printed, for people."""
        try:
            with open_untrusted(self._run_dir / LOG_FILE) as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL_BYTES))
                content = file.read(TAIL_BYTES)
        except (FileNotFoundError, UntrustedPathError):
            return ""
        return content.decode(errors="replace").strip()


def kill_strays(folder: Path) -> None:
    """SIGKILL every process that belongs to a run at or below `folder`, and descendants; returns when they are gone.

    Finds trainers whose launcher is already dead, also after a crash of an earlier daemon.
    """
    family = _family(folder)
    for process in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(list(family), timeout=KILL_DEADLINE_S)


def _family(folder: Path) -> set[psutil.Process]:
    """Every process of a run at or below `folder`, and their descendants; never this one."""
    family: set[psutil.Process] = set()
    for process in psutil.process_iter(["cmdline", "environ"]):
        if _belongs(process, folder):
            family.add(process)
            with contextlib.suppress(psutil.NoSuchProcess):
                family.update(process.children(recursive=True))
    family.discard(psutil.Process())
    return family


def _catches_dump_signal(pid: int) -> bool:
    """From the kernel's mask of caught signals (proc(5)): to a process without a handler the signal would be the end,
    and with a launcher its trainer would be gone before it has spoken."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    caught = next((line.split()[1] for line in status.splitlines() if line.startswith("SigCgt:")), "0")
    return bool(int(caught, 16) >> (DUMP_SIGNAL - 1) & 1)


def _belongs(process: psutil.Process, folder: Path) -> bool:
    """By what it was started with: the run directory is an argument of the trainer and a variable of all it starts."""
    named = (*(process.info["cmdline"] or ()), (process.info["environ"] or {}).get(RUN_DIR_VARIABLE, ""))
    return process.pid != os.getpid() and any(part == str(folder) or part.startswith(f"{folder}/") for part in named)
