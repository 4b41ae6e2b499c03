"""Whether this machine can take a job: its group whole, space on disk, its devices free, and S3 after a job that could
not reach it."""

import asyncio
import shutil
from pathlib import Path

import structlog
from botocore.exceptions import BotoCoreError, ClientError
from fusion_core.storage import Storage

from fusion_worker.group import Group
from fusion_worker.settings import WorkerSettings
from fusion_worker.trainer_process import visible_devices

log = structlog.get_logger()
NVIDIA_SMI = "nvidia-smi"
_SMI_DEADLINE_S = 20.0
_MIB = 2**20


class Readiness:
    """Devices are looked at until they are free and again after each attempt: what a killed trainer held comes back a
    moment later than its process is gone, and a job that starts before runs out of memory."""

    def __init__(self, settings: WorkerSettings, storage: Storage, group: Group | None = None) -> None:
        self._group = group
        self._settings = settings
        self._storage = storage
        self._devices_free = settings.device != "cuda"
        self._doubts_storage = False

    def attempt_ended(self, *, doubts_storage: bool) -> None:
        """`doubts_storage`: S3 failed it, which on a machine cut off from S3 would be every job's fate."""
        self._devices_free = self._settings.device != "cuda"
        self._doubts_storage = doubts_storage

    async def ready(self) -> bool:
        """Never raises; what is missing is in the log."""
        return (
            self._group_is_whole()
            and self._has_space()
            and await self._storage_answers()
            and await self._memory_is_back()
        )

    def _group_is_whole(self) -> bool:
        return self._group is None or self._group.whole

    def _has_space(self) -> bool:
        free = shutil.disk_usage(Path(self._settings.work_dir)).free
        if free < self._settings.min_free_bytes:
            log.warning("disk_nearly_full", free_bytes=free, needed_bytes=self._settings.min_free_bytes)
            return False
        return True

    async def _storage_answers(self) -> bool:
        if self._doubts_storage:
            try:
                await self._storage.check()
            except (OSError, TimeoutError, BotoCoreError, ClientError) as error:
                log.warning("storage_unreachable", error=repr(error))
                return False
            self._doubts_storage = False
        return True

    async def _memory_is_back(self) -> bool:
        if not self._devices_free:
            used = await memory_in_use()
            if used is not None and used > self._settings.max_gpu_bytes_in_use:
                log.warning("gpu_memory_in_use", bytes=used, allowed_bytes=self._settings.max_gpu_bytes_in_use)
                return False
            self._devices_free = True
        return True


async def memory_in_use() -> int | None:
    """Bytes in use on the fullest of this slot's devices, as the driver says; None where it says nothing."""
    argv = [NVIDIA_SMI, "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    devices = visible_devices()
    argv += [f"--id={devices}"] if devices else []
    try:
        process = await asyncio.create_subprocess_exec(
            *argv, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
        )
    except OSError as error:
        log.warning("gpu_memory_unknown", error=repr(error))
        return None
    try:
        async with asyncio.timeout(_SMI_DEADLINE_S):
            output, _ = await process.communicate()
        return max(int(line) for line in output.decode().splitlines()) * _MIB
    except (TimeoutError, ValueError) as error:  # a driver that hangs, or a partition that it does not account
        log.warning("gpu_memory_unknown", error=repr(error))
        return None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
