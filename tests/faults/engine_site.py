"""A tiny random base model and text, for the worker with the real trainer."""

import asyncio
import subprocess
import sysconfig
from pathlib import Path
from uuid import UUID

from fusion_local.processes import base_environment
from fusion_local.stack import Stack

from tests.faults.site import Account, prepare_engine

IMPORT_DEADLINE_S = 120.0


def make_engine_account(stack: Stack, root: Path) -> Account:
    """Import the base as an operator does, and make an account whose jobs grow it."""
    from tests.e2e.conftest import make_base, texts  # brings torch: only a run with the real trainer pays

    folder = make_base(root / "tiny-llama")
    command = [str(Path(sysconfig.get_path("scripts")) / "fusion-admin"), "base-models", "import", str(folder)]
    environment = base_environment() | stack.environment()
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=IMPORT_DEADLINE_S, check=True
    )
    return asyncio.run(prepare_engine(stack, "katherine", UUID(done.stdout.split()[-1]), texts(200)))
