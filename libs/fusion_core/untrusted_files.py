"""Files that a trainer wrote: it may have been taken over by what it read, so its paths and links lead nowhere else."""

import os
import stat
from pathlib import Path
from typing import IO


class UntrustedPathError(RuntimeError):
    """A trainer named, or made, a path that leads out of its run."""


def inside(folder: Path, path: Path) -> Path:
    """The path without any link in it, strictly below `folder`. Raises UntrustedPathError."""
    found = path.resolve()
    if folder.resolve() not in found.parents:
        raise UntrustedPathError(f"{path} leads out of {folder}")
    return found


def open_untrusted(path: Path) -> IO[bytes]:
    """Open a regular file to be read; a link, a pipe or a device is refused without waiting for it.

    Raises FileNotFoundError, UntrustedPathError.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UntrustedPathError(f"{path} cannot be opened as a file: {error.strerror}") from error
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise UntrustedPathError(f"{path} is not a file")
    return os.fdopen(handle, "rb")


def read_untrusted(path: Path, limit: int) -> bytes:
    """The whole of a regular file of at most `limit` bytes. Raises FileNotFoundError, UntrustedPathError."""
    with open_untrusted(path) as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise UntrustedPathError(f"{path} is larger than {limit} bytes")
    return content
