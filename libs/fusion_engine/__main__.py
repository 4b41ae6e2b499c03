"""`python -m fusion_engine RUN_DIR`: one training attempt, under accelerate or alone."""

import argparse
import errno
import os
import shutil
import sys
from pathlib import Path

from fusion_core.parent_death import die_with_parent

DISK_FULL_EXIT = 28


def main() -> int:
    """Exit code 0 when events.jsonl ends in an outcome; DISK_FULL_EXIT, or a traceback and 1, for a crash."""
    parser = argparse.ArgumentParser(prog="python -m fusion_engine", description=__doc__)
    parser.add_argument("run_dir", type=Path, help="a run directory with run.json (docs/trainer-protocol.md)")
    run_dir: Path = parser.parse_args().run_dir.resolve()
    die_with_parent()  # the launcher dies with its daemon, and we with the launcher
    os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported: the trainer opens no connections

    from fusion_engine.run import execute

    try:
        execute(run_dir)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        path = error.filename or run_dir
        free = shutil.disk_usage(run_dir).free
        # The daemon looks for this prefix: another worker may have the space.
        print(f"fusion_engine: disk_full: writing {path} failed, {free} bytes are free", file=sys.stderr)  # noqa: T201
        return DISK_FULL_EXIT
    return 0


if __name__ == "__main__":
    sys.exit(main())
