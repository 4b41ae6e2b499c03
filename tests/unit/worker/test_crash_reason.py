"""What the end of a trainer's log says about its death."""

import errno

import pytest
from fusion_worker.crash_reason import of_daemon, of_trainer
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
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB", "trainer_crashed"),
        ("RuntimeError: CUDA error: out of memory", "trainer_crashed"),
        ("fusion_engine: disk_full: writing /x failed", "disk_full"),
    ],
)
def test_the_line_that_tells_is_found_before_what_the_launcher_prints(line: str, code: str) -> None:
    reason = of_trainer(f"Traceback\n{line}\nlauncher: subprocess failed", 1)
    assert reason.code == code
    assert reason.message == (line if code != "trainer_crashed" else "launcher: subprocess failed")


def test_a_silent_death_is_told_by_its_exit_code() -> None:
    assert of_trainer("", -11) == ("trainer_crashed", "the trainer ended with -11")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (OSError(errno.ENOSPC, "full"), "disk_full"),
        (UploadFailedError("the export"), "upload_failed"),
        (TimeoutError(), "inputs_unavailable"),
    ],
)
def test_faults_of_the_daemons_own_part(error: Exception, code: str) -> None:
    reason = of_daemon(error)
    assert reason.code == code
    assert reason.message
