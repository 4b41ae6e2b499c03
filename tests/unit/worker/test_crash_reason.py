"""What the end of a trainer's log says about its death."""

import errno
from typing import Any

import pytest
from botocore.exceptions import ClientError, EndpointConnectionError
from fusion_core.storage import ObjectMissingError
from fusion_worker.crash_reason import NoOutputError, of_daemon, of_trainer
from fusion_worker.uploads import UploadFailedError


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("torch.AcceleratorError: CUDA error: uncorrectable ECC error encountered", "gpu_fault"),
        ("RuntimeError: CUDA error: unspecified launch failure", "gpu_fault"),
        ("RuntimeError: CUDA error: CUDA-capable device(s) is/are busy or unavailable", "gpu_fault"),
        ("NVRM: Xid (PCI:0000:1a:00): 79, GPU has fallen off the bus.", "gpu_fault"),
        ("RuntimeError: CUDA error: device-side assert triggered", "trainer_crashed"),
        ("RuntimeError: CUDA error: an illegal memory access was encountered", "trainer_crashed"),
        ("[rank3]: torch.AcceleratorError: CUDA error: uncorrectable ECC error encountered", "gpu_fault"),
        ("ValueError: bad row 'RuntimeError: CUDA error: unspecified launch failure'", "trainer_crashed"),
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB", "trainer_crashed"),
        ("RuntimeError: CUDA error: out of memory", "trainer_crashed"),
        ("fusion_engine: disk_full: writing /x failed", "disk_full"),
    ],
)
def test_the_line_that_tells_is_found_before_what_the_launcher_prints(line: str, code: str) -> None:
    reason = of_trainer(f"Traceback\n{line}\nlauncher: subprocess failed", 1)
    assert reason.code == code
    assert reason.message == (line if code != "trainer_crashed" else "launcher: subprocess failed")


@pytest.mark.parametrize(
    ("returncode", "words"), [(-11, "killed by SIGSEGV"), (-9, "runs out of memory"), (3, "ended with 3")]
)
def test_a_silent_death_is_told_by_its_exit_code(returncode: int, words: str) -> None:
    reason = of_trainer("", returncode)
    assert reason.code == "trainer_crashed"
    assert words in reason.message


def refusal(status: int, code: str) -> ClientError:
    answer: Any = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return ClientError(answer, "GetObject")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (OSError(errno.ENOSPC, "full"), "disk_full"),
        (UploadFailedError("the export"), "upload_failed"),
        (LookupError("a bug"), "inputs_unavailable"),
        (NoOutputError("finished without an export"), "trainer_crashed"),
        (ObjectMissingError("key"), "inputs_unavailable"),
        (refusal(404, "NoSuchBucket"), "inputs_unavailable"),
        (refusal(403, "AccessDenied"), "inputs_unavailable"),
        (refusal(403, "RequestTimeTooSkewed"), "storage_unavailable"),
        (refusal(503, "SlowDown"), "storage_unavailable"),
        (EndpointConnectionError(endpoint_url="http://s3"), "storage_unavailable"),
        (TimeoutError(), "storage_unavailable"),
        (ConnectionResetError(), "storage_unavailable"),
    ],
)
def test_faults_of_the_daemons_own_part(error: Exception, code: str) -> None:
    reason = of_daemon(error)
    assert reason.code == code
    assert reason.message


def test_an_upload_that_an_outage_ended_is_no_fault_of_its_files() -> None:
    error = UploadFailedError("the export")
    error.__cause__ = ExceptionGroup("uploads", [refusal(500, "InternalError")])
    assert of_daemon(error).code == "storage_unavailable"
    error.__cause__ = ExceptionGroup("uploads", [OSError(errno.EACCES, "no")])
    assert of_daemon(error).code == "upload_failed"
