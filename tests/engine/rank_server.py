"""A process with the engine in memory that becomes a rank of a run again and again; engine_ranks.py starts and asks it.

A line of JSON asks for a rank: the words of its command, its environment, the file for its output. Two lines answer:
its process id, and its exit code once it has ended, negative for a signal.
"""

import json
import os
import runpy
import sys
from typing import Any

import fusion_engine.train  # noqa: F401 - what ranks would import one by one
import torch.distributed.fsdp  # noqa: F401 - the same
import transformers.models.llama.modeling_llama  # noqa: F401 - the same
from fusion_core.parent_death import die_with_parent


def become(asked: dict[str, Any]) -> None:
    log = os.open(asked["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for number in (1, 2):
        os.dup2(log, number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.environ |= asked["environment"]
    run_program(asked["words"])


def run_program(words: list[str]) -> None:
    """As `python` runs them: a file, or a module after -m."""
    if words[0] == "-m":
        sys.argv = words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = words
        runpy.run_path(words[0], run_name="__main__")


def answer(number: int) -> None:
    sys.stdout.write(f"{number}\n")
    sys.stdout.flush()


die_with_parent()
for line in sys.stdin:
    pid = os.fork()
    if pid == 0:
        become(json.loads(line))
        break
    answer(pid)
    answer(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
