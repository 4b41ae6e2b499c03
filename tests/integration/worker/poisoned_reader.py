"""The product's reader, but for rows that do to it what nobody has thought of yet. python poisoned_reader.py RUN_DIR

{"text": "hang"}   the first row: nothing more happens
{"text": "kill"}   the first row: the process is killed, as by the kernel when memory is out
"""

import os
import signal
import sys
import time
from pathlib import Path

from fusion_core.stack_dump import dump_stacks_on_signal
from fusion_core.trainer_protocol import IngestRun, read_run
from fusion_data.ingest import ingest

RUN_DIR = Path(sys.argv[1])


def hang() -> None:
    time.sleep(60)


def main() -> None:
    dump_stacks_on_signal()
    run = read_run(RUN_DIR)
    assert isinstance(run, IngestRun)
    first = Path(run.inputs[0].path).read_bytes().split(b"\n")[0]
    if b'"hang"' in first:
        hang()
    if b'"kill"' in first:
        os.kill(os.getpid(), signal.SIGKILL)
    ingest(RUN_DIR)


main()
