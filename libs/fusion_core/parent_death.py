"""A child that must not outlive its parent asks the kernel for a signal at the parent's death (Linux, prctl(2))."""

import ctypes
import signal
import sys

_PR_SET_PDEATHSIG = 1
# Loaded here, before any fork: between fork and exec nothing may be imported.
libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


def die_with_parent(number: signal.Signals = signal.SIGKILL) -> None:
    """Have `number` sent to this process when the thread that started it ends. Elsewhere than on Linux: nothing."""
    if libc is not None:
        libc.prctl(_PR_SET_PDEATHSIG, int(number))
