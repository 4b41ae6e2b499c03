"""What a process that hangs is doing: the stacks of all its threads, on stderr, when it gets a signal."""

import faulthandler
import re
import signal

DUMP_SIGNAL = signal.SIGUSR1
_STDERR = 2
_FRAME = re.compile(
    r'thread 0x[^\n]*\(most recent call first\):\n  File "([^"\n]*)", line (\d+) in (\S+)', re.IGNORECASE
)


def dump_stacks_on_signal() -> None:
    """From now on DUMP_SIGNAL prints every thread's stack. The handler is C and waits for no lock of Python's."""
    faulthandler.register(DUMP_SIGNAL, file=_STDERR, all_threads=True)


def innermost_frame(log: str) -> str | None:
    """Where the main thread was, as `file:line in function`: a dump ends with the thread that was first."""
    frames = _FRAME.findall(log)
    return "{}:{} in {}".format(*frames[-1]) if frames else None
