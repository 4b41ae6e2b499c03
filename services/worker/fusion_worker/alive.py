"""python -m fusion_worker.alive WORK_DIR: does the daemon's loop still turn? For a container's liveness probe.

A probe over the network would ask a thread that answers even when the loop hangs; this asks the loop's own mark.
"""

import sys
import time
from pathlib import Path

MARK = "alive"
OLDEST_S = 120.0  # many heartbeats, and longer than any statement the loop waits for


def mark(work_dir: Path) -> None:
    """Called by the daemon's loop at each turn."""
    (work_dir / MARK).touch()


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit("usage: python -m fusion_worker.alive WORK_DIR")
    try:
        age_s = time.time() - (Path(sys.argv[1]) / MARK).stat().st_mtime
    except OSError as error:
        sys.exit(f"the daemon has left no mark: {error}")
    if age_s > OLDEST_S:
        sys.exit(f"the daemon's loop last turned {age_s:.0f} s ago")


if __name__ == "__main__":
    main()
