"""A process that holds secrets keeps them: nobody of its own user reads its memory, and no core file is written."""

import resource

from fusion_core.parent_death import libc

_PR_SET_DUMPABLE = 4


def forbid_dumps() -> None:
    """Make this process's memory and first environment unreadable for its own user (Linux, prctl(2)).

    Without it a trainer of the same user reads the daemon's credentials in /proc/PID/environ and /proc/PID/mem. Root
    may still read them: a daemon that is root gives its trainers a user of their own. Elsewhere than on Linux only
    core files are forbidden.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if libc is not None and libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        raise OSError("the kernel does not let this process hide its memory (PR_SET_DUMPABLE)")
