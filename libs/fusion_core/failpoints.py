"""Named places where tests kill the process or fill the disk: FUSION_FAILPOINT=name[:nth][=enospc][@file].

`step:7` kills with SIGKILL at the seventh hit; `=enospc` raises OSError instead; `@file` makes it happen only once, by
creating that file first. Unset, `hit` costs one comparison.
"""

import errno
import os
import re
import signal
from pathlib import Path

_SPEC = re.compile(r"(?P<name>[\w.]+)(:(?P<nth>\d+))?(=(?P<kind>enospc))?(@(?P<once>.+))?")
_hits = 0


def hit(name: str) -> None:
    """Does nothing unless FUSION_FAILPOINT names this place and this is the hit it asks for."""
    spec = os.environ.get("FUSION_FAILPOINT")
    if spec:
        _act(name, spec)


def _act(name: str, spec: str) -> None:
    global _hits  # noqa: PLW0603 - one counter a process, only in tests
    match = _SPEC.fullmatch(spec)
    if match is None:
        raise ValueError(f"FUSION_FAILPOINT={spec!r} is not name[:nth][=enospc][@file]")
    if match["name"] != name:
        return
    _hits += 1
    if _hits != int(match["nth"] or 1):
        return
    if match["once"] is not None:
        try:
            Path(match["once"]).touch(exist_ok=False)
        except FileExistsError:
            return
    if match["kind"] == "enospc":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    os.kill(os.getpid(), signal.SIGKILL)
