"""A trainer that was taken over: it looks for everything it should not have. Standard library alone. snoop.py RUN_DIR

What it finds is the message of its outcome. With SNOOP_SLEEP as the run's name it stays.
"""

import json
import os
import resource
import socket
import sys
import time
from pathlib import Path

NAMES = ("CORE", "NOFILE", "NPROC")


def attempt(read):
    try:
        return {"got": read()}
    except OSError as error:
        return {"refused": error.strerror or str(error)}


def connected(address):
    with socket.create_connection(address, timeout=5):
        return True


def findings(run_dir):
    parent = Path(f"/proc/{os.getppid()}")
    run = json.loads((run_dir / "run.json").read_text())
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {
        "user": [os.getuid(), os.getgid(), os.getgroups()],
        "environ": dict(os.environ),
        "parent_environ": attempt(lambda: (parent / "environ").read_bytes().decode(errors="replace")),
        "parent_memory": attempt(lambda: (parent / "mem").open("rb").close()),
        "parent_files": attempt(lambda: [str(path) for path in (parent / "fd").iterdir()]),
        "other_runs": attempt(lambda: [str(path) for path in (run_dir.parent).iterdir()]),
        "cache": attempt(lambda: [str(path) for path in (run_dir.parents[1] / "cache").iterdir()]),
        "changed_input": attempt(lambda: [path.open("r+b").close() for path in (run_dir / "base").glob("*")]),
        "new_privileges": status["NoNewPrivs"].strip(),
        "limits": {name: resource.getrlimit(getattr(resource, f"RLIMIT_{name}")) for name in NAMES},
        "named": run["job_id"],
    }


def main():
    run_dir = Path(sys.argv[1])
    if "address" in os.environ.get("TORCH_SNOOP", ""):
        host, port = os.environ["TORCH_SNOOP"].split("=")[1].split(":")
        found = {"network": attempt(lambda: connected((host, int(port))))}
    else:
        found = findings(run_dir)
    outcome = {"type": "rejected", "code": "dataset_too_short", "message": json.dumps(found)}
    with (run_dir / "events.jsonl").open("a") as events:
        events.write(json.dumps(outcome) + "\n")
    if os.environ.get("TORCH_SNOOP") == "sleep":
        time.sleep(60)


main()
