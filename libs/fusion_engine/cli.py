"""The engine's command line: `fusion-engine COMMAND ...`, or `python -m fusion_engine RUN_DIR` for a worker's attempt.

Exit codes: 0; 2 for bad input, with every fault on stderr; 28 when the disk is full; 130 when interrupted; a traceback
and 1 for a crash.
"""

import argparse
import errno
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from fusion_core.trainer_protocol import RUN_FILE

from fusion_engine.commands import attempt, contract, evaluate, grow, inspect, plan, train
from fusion_engine.commands.parser import Parser
from fusion_engine.outcomes import RejectedError

BAD_INPUT_EXIT, DISK_FULL_EXIT, INTERRUPTED_EXIT = 2, 28, 130
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
# Paths that cannot be read or written: an answer for a person; a worker's attempt crashes, with its traceback.
_BAD_PATH = (
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ELOOP,
    errno.ENAMETOOLONG,
)  # fmt: skip
_COMMANDS = (inspect, plan, grow, train, contract, evaluate)
_EPILOG = """\
examples:
  fusion-engine inspect ./Llama-3.2-1B                      what the model is and what can be grown
  fusion-engine plan ./Llama-3.2-1B --growth-factor 1.3     exact sizes, without reading any weights
  fusion-engine grow ./Llama-3.2-1B ./grown                 a larger model that computes the same
  fusion-engine train ./Llama-3.2-1B rows.jsonl ./ours      grow, and train what was added
  fusion-engine contract ./ours ./small                     fewer FFN channels, healed by distillation
  fusion-engine evaluate ./grown heldout.jsonl              its perplexity on data

`python -m fusion_engine RUN_DIR` works off one attempt of a worker (docs/trainer-protocol.md).
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Answers the exit code. Raises SystemExit for --help and for arguments that cannot be parsed."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    parser, commands = _parser()
    if len(words) == 1 and words[0] not in commands and (Path(words[0]) / RUN_FILE).is_file():
        words.insert(0, attempt.NAME)
    parsed = parser.parse_args(words)
    os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported: the engine opens no connections
    try:
        return int(parsed.run(parsed))
    except RejectedError as error:
        _complain(f"{error.message} [{error.code}]")
        for fault in error.errors[1:]:
            _complain(f"  {_place(fault)}{fault.get('detail', '')}".rstrip())
        return BAD_INPUT_EXIT
    except OSError as error:
        if error.errno in _BAD_PATH and error.filename is not None and parsed.command != attempt.NAME:
            _complain(f"{error.filename}: {error.strerror} [inputs_unavailable]")
            return BAD_INPUT_EXIT
        if error.errno not in _DISK_FULL:
            raise
        place = Path(error.filename or getattr(parsed, "destination", ".")).absolute()
        # The worker looks for this prefix: another one may have the space.
        _complain(f"disk_full: writing {place} failed, {_free_bytes(place)} bytes are free: {error.strerror}")
        return DISK_FULL_EXIT
    except KeyboardInterrupt:
        _complain("interrupted")
        return INTERRUPTED_EXIT


def _place(fault: Mapping[str, object]) -> str:
    """Where a fault is: a line of a data file, or a file of a model."""
    if "shard" in fault:
        return f"{fault['shard']}, line {fault['line']}: "
    return f"{fault['file']} " if "file" in fault else ""


def _parser() -> tuple[argparse.ArgumentParser, set[str]]:
    """The parser and the names of its commands."""
    parser = Parser(
        prog="fusion-engine",
        description="Grow, train and measure language models on this machine.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True, dest="command")
    for module in (*_COMMANDS, attempt):
        module.add_parser(subparsers)
    return parser, set(subparsers.choices)


def _complain(message: str) -> None:
    print(f"fusion_engine: {message}", file=sys.stderr)  # noqa: T201 - a command speaks


def _free_bytes(place: Path) -> int:
    existing = next(folder for folder in (place, *place.parents) if folder.exists())
    return shutil.disk_usage(existing).free
