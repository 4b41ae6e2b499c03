"""fusion-admin against the real port; and docs/admin.md, run from top to bottom by a shell."""

import asyncio
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import msgspec
import pytest
from fusion_core.db import webhooks
from fusion_core.db.waiting import REASONS
from fusion_local.stack import HOST, free_port
from fusion_orchestrator.admin.server import serving_admin
from fusion_orchestrator.admin_cli import app as command
from fusion_orchestrator.service import Service
from litestar import Litestar

from tests.integration.db.conftest import World

from .conftest import new_token
from .test_access import routes
from .test_views import register

PAGE = (Path(__file__).parents[3] / "docs/admin.md").read_text()
Run = Callable[..., Awaitable[tuple[int, str, str]]]


@pytest.fixture
async def environment(service: Service, clocked_database_url: str, tmp_path: Path) -> AsyncIterator[dict[str, str]]:
    """Of a shell that has `fusion-admin`, the address of a served admin port, and the stores' settings."""
    shim = tmp_path / "bin" / "fusion-admin"
    shim.parent.mkdir()
    code = "from fusion_orchestrator.admin_cli import app; app()"
    shim.write_text(f'#!/bin/sh\nexec {shlex.join([sys.executable, "-c", code])} "$@"\n')
    shim.chmod(0o755)
    service.settings = msgspec.structs.replace(service.settings, admin_port=free_port())
    common = {name: value for name, value in msgspec.structs.asdict(service.settings).items() if name.startswith("s3_")}
    own = {f"FUSION_{name.upper()}": str(value) for name, value in common.items() if value is not None}
    async with serving_admin(service):
        yield own | {
            "PATH": f"{shim.parent}:{os.environ['PATH']}",
            "FUSION_DATABASE_URL": clocked_database_url,
            "FUSION_ADMIN_URL": f"http://{HOST}:{service.settings.admin_port}",
            "COLUMNS": "200",
        }


@pytest.fixture
def run(environment: dict[str, str]) -> Run:
    """(exit code, stdout, stderr) of a shell's script."""

    async def shell(script: str, **more: str) -> tuple[int, str, str]:
        process = await asyncio.create_subprocess_exec(
            "sh", "-e", "-c", script, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment | more
        )
        async with asyncio.timeout(200):
            out, err = await process.communicate()
        return process.returncode or 0, out.decode(), err.decode()

    return shell


async def test_the_page_can_be_followed_to_the_letter(world: World, run: Run) -> None:
    await register(world)
    attempt = await world.running()
    job = await world.job(attempt.job_id)
    async with world.pool.acquire() as conn:
        hook = await webhooks.create_endpoint(
            conn, job.account_id, url="https://x.example", event_types=["job.failed"], description=""
        )
        await webhooks.add_test(conn, job.account_id, hook["id"])
    await world.pool.execute(
        "update webhook_deliveries set state = 'failed', next_attempt_at = null, finished_at = now()"
    )
    script = "\n".join(re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL))
    names = {"JOB": str(job.id), "ACCOUNT": str(job.account_id), "WORKER": str(world.claimer.worker_id), "POOL": "test",
             "WEBHOOK": str(hook["id"])}  # fmt: skip
    code, out, err = await run(script, **names)
    assert code == 0, err
    done = [row["action"] for row in await world.pool.fetch("select action from audit_log order by id")]
    assert done == ["create_token", "create_token", "drain", "undrain", "cordon", "uncordon", "pause",
                    "resume", "priority", "deadline", "requeue", "fail", "replay",
                    "prune"], "reclaim had nothing to do"  # fmt: skip
    failed = await world.job(job.id)
    assert failed.error is not None
    assert "licence" in failed.error["message"]
    assert '"expected_wait_s"' in out
    assert "kernel update" in out
    assert "nothing to change" in err


def test_the_page_has_every_endpoint_and_every_command(app: Litestar) -> None:
    documented = set(re.findall(r"^\| `((?:GET|POST) /admin/[^`]+)` \|", PAGE, re.MULTILINE))
    served = {
        f"{method} {route.path}".replace(":uuid}", "}").replace(":str}", "}")
        for route in app.routes
        for handler in getattr(route, "route_handlers", ())
        for method in handler.http_methods - {"HEAD", "OPTIONS"}
    }
    assert len(served) == len(routes(app))
    litestars_own = {"GET /admin", "GET /admin/{path}"}  # not found, but for those who may ask
    assert documented == served - litestars_own
    commands = {one.name or one.callback.__name__ for one in command.registered_commands if one.callback is not None}
    shown = set(re.findall(r"^fusion-admin (\w+)", PAGE, re.MULTILINE))
    assert commands - shown == {"migrate", "prune", "retention"}, "docs/operations.md has those"


def test_the_page_says_what_to_do_about_every_reason_to_wait() -> None:
    table = PAGE.split("| waits for |", 1)[1].split("\n\n", 1)[0]
    assert tuple(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == REASONS


async def test_json_is_what_the_endpoint_answers(world: World, run: Run) -> None:
    token = (await new_token(world.pool, "ada", "operator")).secret
    job = await world.train()
    code, out, err = await run("fusion-admin jobs --json", FUSION_OPERATOR_TOKEN=token)
    assert code == 0, err
    assert [one["id"] for one in json.loads(out)] == [str(job.id)]
    code, out, _ = await run(f"fusion-admin priority --json -r why {job.id} -- -5", FUSION_OPERATOR_TOKEN=token)
    assert json.loads(out)["after"]["priority"] == -5


async def test_what_is_wrong_is_said_in_a_line_and_what_to_do(world: World, run: Run, tmp_path: Path) -> None:
    viewer = (await new_token(world.pool, "eve", "viewer")).secret
    kept = tmp_path / "token"
    kept.write_text(f"{viewer}\n")
    nowhere = "00000000-0000-7000-8000-00000000ffff"
    for script, more, says in (
        ("overview", {}, "FUSION_OPERATOR_TOKEN"),
        ("overview", {"FUSION_OPERATOR_TOKEN_FILE": "/nowhere"}, "cannot be read"),
        ("overview", {"FUSION_OPERATOR_TOKEN": "fusion_live_x"}, "does not begin with"),
        ("overview", {"FUSION_OPERATOR_TOKEN": "fusion_ops_x"}, "unknown or revoked"),
        ("overview", {"FUSION_OPERATOR_TOKEN": viewer, "FUSION_ADMIN_URL": f"http://{HOST}:1"}, "admin port"),
        (f"fail {nowhere} -r x", {"FUSION_OPERATOR_TOKEN_FILE": str(kept)}, "needs the role operator"),
        (f"job {nowhere}", {"FUSION_OPERATOR_TOKEN_FILE": str(kept)}, "no such job"),
        ("jobs --account x", {"FUSION_OPERATOR_TOKEN": viewer}, "account"),
        ("operators create eve --role viewer", {}, "revoke it first"),
        ("operators create cli:root --role operator", {}, "another actor's"),
    ):
        code, out, err = await run(f"fusion-admin {script}", **more)
        assert (code, out) == (1, ""), script
        assert says in err, err
        assert "Traceback" not in err
        assert viewer not in err
