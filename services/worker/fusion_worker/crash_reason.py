"""Why a trainer died without an outcome, from the end of what it printed."""

import errno
import re
import signal
from typing import NamedTuple

from fusion_core.db.attempts import NODE_LOST, STORAGE_UNAVAILABLE
from fusion_core.storage import is_outage

from fusion_worker.group_link import NodeLostError
from fusion_worker.uploads import UploadFailedError, first_of

_MESSAGE_CHARACTERS = 500
# What a device or its driver says when it is broken. Messages of the CUDA runtime are listed in the documentation of
# cudaError_t, Xid numbers in NVIDIA's "XID Errors". Only at the head of
# an exception's own line, or of the driver's: anywhere else it may be a row of the customer's.
_GPU_FAULT = re.compile(
    r"(?:\[rank\d+\]: ?)?[\w.]*Error: (?:CUDA error: (?P<cuda>.*)|.*CUDNN_STATUS_INTERNAL_ERROR|.*GPU is lost)"
    r"|NVRM: .*(?:\bXid\b|fallen off the bus)"
)
# Those of the runtime that a program's own mistake, or a row that it should have refused, causes on a sound device.
_OF_PROGRAM = re.compile(
    r"out of memory|device-side assert|illegal memory access|misaligned address|invalid argument|invalid configuration"
    r"|no kernel image|too many resources|stream is capturing"
)


class NoOutputError(Exception):
    """The trainer said that it has finished, without what it was to make."""


class CrashReason(NamedTuple):
    """A code of fusion_core.problems, and the line that says most."""

    code: str
    message: str


def of_trainer(tail: str, returncode: int | None) -> CrashReason:
    """The launcher may print after its trainer, so the line that tells is not always the last."""
    lines = tail.splitlines()
    for line in lines:
        if ": disk_full: " in line:
            return CrashReason("disk_full", line[-_MESSAGE_CHARACTERS:])
    for line in lines:
        if _is_gpu_fault(line):
            return CrashReason("gpu_fault", line[-_MESSAGE_CHARACTERS:])
    return CrashReason("trainer_crashed", lines[-1][-_MESSAGE_CHARACTERS:] if lines else _exit_of(returncode))


def of_daemon(error: Exception) -> CrashReason:
    """Of an attempt that ended in the daemon's own part of it."""
    message = str(error)[-_MESSAGE_CHARACTERS:] or type(error).__name__
    if isinstance(error, NodeLostError):
        return CrashReason(NODE_LOST, message)
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return CrashReason("disk_full", message)
    if isinstance(error, NoOutputError):
        return CrashReason("trainer_crashed", message)
    cause = error.__cause__ if isinstance(error, UploadFailedError) and error.__cause__ is not None else error
    if is_outage(first_of(cause)):
        return CrashReason(STORAGE_UNAVAILABLE, message)
    return CrashReason("upload_failed" if isinstance(error, UploadFailedError) else "inputs_unavailable", message)


def _exit_of(returncode: int | None) -> str:
    """In words: a process that was killed has nothing to say for itself."""
    if returncode == -signal.SIGKILL:
        return "the trainer was killed (SIGKILL), as when the machine runs out of memory"
    if returncode is not None and returncode < 0:
        return f"the trainer was killed by {signal.Signals(-returncode).name}"
    return f"the trainer ended with {returncode}"


def _is_gpu_fault(line: str) -> bool:
    found = _GPU_FAULT.match(line)
    return found is not None and not (found["cuda"] and _OF_PROGRAM.search(found["cuda"]))
