"""python -m fusion_data: check dataset files before uploading them, or run one attempt of an ingest job."""

import argparse
import errno
import resource
import shutil
import sys
from pathlib import Path

from fusion_core.stack_dump import dump_stacks_on_signal

from fusion_data.ingest import ingest
from fusion_data.limits import LIMITS, MIB

_FORMATS = f"""
a dataset file is one of these, alone or compressed by gzip (.gz) or zstd (.zst):
  .jsonl, .ndjson   one JSON object a line
  .csv              a header, then a record a row; messages and tools as JSON
  .parquet          a column a field; messages as lists of structs or as JSON
  .txt              plain text; blocks of lines between blank lines are the rows
a row is one of these; other fields are not used:
  {{"text": "The quick brown fox"}}
  {{"prompt": "2 + 2 =", "completion": " 4"}}
  {{"messages": [{{"role": "user", "content": "Hi"}}, {{"role": "assistant", "content": "Hello"}}]}}
  {{"prompt": "Hi", "chosen": "Hello", "rejected": "Go away"}}
a row is at most {LIMITS.line_bytes // MIB} MiB of UTF-8; docs/datasets.md has every rule.
"""


def main() -> None:
    arguments = _parser().parse_args()
    if arguments.command == "validate":
        from fusion_data.validate import validate  # what draws the report is not needed to ingest

        sys.exit(validate(arguments.files, arguments.policy, arguments.errors, as_json=arguments.json))
    _ingest(arguments.run_dir)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fusion_data",
        description="Check and shard datasets.",
        epilog=_FORMATS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    validate = commands.add_parser(
        "validate",
        help="check files as the service will, before uploading them",
        epilog=f"{_FORMATS}\nexit status: 0 a dataset, 1 not a dataset, 2 no such file or a wrong option",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    validate.add_argument("files", nargs="+", type=Path, metavar="FILE")
    policy = "what a bad row does: fail the dataset (default), or be left out and counted"
    validate.add_argument("--policy", choices=("fail", "skip"), default="fail", help=policy)
    validate.add_argument("--errors", type=int, default=20, metavar="N", help="show the first N errors (default 20)")
    validate.add_argument("--json", action="store_true", help="print the whole report as JSON, and nothing else")
    attempt = commands.add_parser(
        "ingest",
        help="run one attempt of an ingest job (what a worker starts)",
        epilog="RUN_DIR holds run.json; events.jsonl, report.json and shards/ appear beside it.",
    )
    attempt.add_argument("run_dir", type=Path, metavar="RUN_DIR")
    return parser


def _ingest(run_dir: Path) -> None:
    dump_stacks_on_signal()
    if not (run_dir / "run.json").is_file():
        sys.exit(f"fusion_data: {run_dir / 'run.json'} does not exist")
    # Beyond it a MemoryError: too_much_memory. Nothing that reading sets off can lift either limit again.
    resource.setrlimit(resource.RLIMIT_DATA, (LIMITS.memory_bytes, LIMITS.memory_bytes))
    resource.setrlimit(resource.RLIMIT_FSIZE, (LIMITS.file_bytes, LIMITS.file_bytes))
    try:
        ingest(run_dir)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        free = shutil.disk_usage(run_dir).free
        sys.exit(f"fusion_data: disk_full: no space left below {run_dir} ({free} bytes free)")


if __name__ == "__main__":
    main()
