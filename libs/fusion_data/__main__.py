"""python -m fusion_data: check dataset files before uploading them, or run one attempt of an ingest job."""

import argparse
import errno
import shutil
import sys
from pathlib import Path

from fusion_core.trainer_protocol import IngestInput

from fusion_data.ingest import ingest
from fusion_data.lines import MAX_LINE_BYTES
from fusion_data.survey import DatasetError, survey_files

_FORMATS = f"""
a dataset file is UTF-8 (a byte order mark and CRLF are fine) and one of
  .jsonl, .ndjson   one JSON object a line with a string "text"; other fields are not used:
                      {{"text": "The quick brown fox"}}
  .txt              plain text; blocks of lines between blank lines are the rows
a row is at most {MAX_LINE_BYTES // 2**20} MiB; one wrong line fails the dataset, and every wrong line is named.
"""


def main() -> None:
    arguments = _parser().parse_args()
    if arguments.command == "validate":
        sys.exit(_validate(arguments.files))
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
        epilog=_FORMATS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    validate.add_argument("files", nargs="+", type=Path, metavar="FILE")
    attempt = commands.add_parser(
        "ingest",
        help="run one attempt of an ingest job (what a worker starts)",
        epilog="RUN_DIR holds run.json; events.jsonl and shards/ appear beside it (docs/trainer-protocol.md).",
    )
    attempt.add_argument("run_dir", type=Path, metavar="RUN_DIR")
    return parser


def _validate(files: list[Path]) -> int:
    """Print the report that the service would give; answers the exit status."""
    missing = [str(file) for file in files if not file.is_file()]
    if missing:
        print(f"fusion_data: no such file: {', '.join(missing)}", file=sys.stderr)  # noqa: T201
        return 2
    try:
        survey = survey_files([IngestInput(str(file), str(file)) for file in files])
    except DatasetError as error:
        print(f"not a dataset ({error.code}): {error}", file=sys.stderr)  # noqa: T201
        for fault in error.faults:
            print(f"  {fault.file}:{fault.line}: {fault.detail}", file=sys.stderr)  # noqa: T201
        return 1
    print(f"ok: {survey.rows} rows, {survey.text_bytes} bytes of text in {len(files)} files")  # noqa: T201
    return 0


def _ingest(run_dir: Path) -> None:
    if not (run_dir / "run.json").is_file():
        sys.exit(f"fusion_data: {run_dir / 'run.json'} does not exist")
    try:
        ingest(run_dir)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        free = shutil.disk_usage(run_dir).free
        sys.exit(f"fusion_data: disk_full: no space left below {run_dir} ({free} bytes free)")


if __name__ == "__main__":
    main()
