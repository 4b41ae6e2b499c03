"""The subcommands of `fusion-engine`, one module each: `add_parser(subparsers)`, whose parser sets `run`.

`run(arguments)` answers the exit code and raises RejectedError for bad input. Nothing heavy is imported before it is
called, so that `--help`, `plan` and `inspect` answer at once.
"""

import argparse
from typing import TypeAlias

Subparsers: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
