"""fusion-admin as an operator calls it, over real stores: import once, keys that work, errors that say what to do."""

import asyncio
import hashlib
import inspect
import json
import os
import pwd
import shutil
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import pytest
from fusion_core.db.pool import queries
from fusion_core.storage import Storage
from fusion_orchestrator.admin_cli import app as command_line

Admin = Callable[..., Awaitable[tuple[int, str, str]]]

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "num_hidden_layers": 1,
    "hidden_size": 4,
    "intermediate_size": 4,
    "num_attention_heads": 1,
    "vocab_size": 8,
}


@pytest.fixture
def admin(service_environment: dict[str, str]) -> Admin:
    """Run the command as its own process: (exit code, stdout, stderr)."""

    async def run(*arguments: str) -> tuple[int, str, str]:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", "from fusion_orchestrator.admin_cli import app; app()", *arguments,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=service_environment,
        )  # fmt: skip
        async with asyncio.timeout(60):
            out, err = await process.communicate()
        return process.returncode or 0, out.decode().strip(), err.decode().strip()

    return run


@pytest.fixture
def model_dir(tmp_path: Path) -> Path:
    """One block of hidden 4: 2 x 32 embedding, 4 x 16 attention, 3 x 16 FFN, 3 x 4 norms."""
    path = tmp_path / "tiny"
    path.mkdir()
    header = json.dumps({"all": {"dtype": "F32", "shape": [188], "data_offsets": [0, 752]}}).encode()
    (path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(752))
    (path / "config.json").write_text(json.dumps(CONFIG))
    (path / "tokenizer.json").write_text("{}")
    return path


def hashes(path: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in path.iterdir()}


async def test_a_model_is_imported_once_with_its_rehearsal_set(
    admin: Admin, model_dir: Path, tmp_path: Path, world: Any, storage: Storage
) -> None:
    rehearsal = tmp_path / "rehearsal.jsonl"
    rehearsal.write_text('{"text": "one"}\n{"text": "two"}\n')
    before = hashes(model_dir)
    code, base_id, err = await admin("base-models", "import", str(model_dir), "--rehearsal", str(rehearsal))
    assert code == 0, err
    assert "188 parameters, fp32, 2 rehearsal rows" in err
    row = await queries.get_base_model(world.pool, base_model_id=base_id)
    assert (row["name"], row["version"], row["params"], row["family"]) == ("tiny", "fp32", 188, "llama")
    assert row["config"] == CONFIG
    assert {entry["rel"]: entry["sha256"] for entry in row["manifest"]["files"]} == before
    for entry in row["manifest"]["files"] + row["rehearsal"]["files"]:
        stored = await storage.get_bytes(f"{row['s3_prefix']}/{entry['rel']}")
        assert (len(stored), hashlib.sha256(stored).hexdigest()) == (entry["size"], entry["sha256"])
    objects = {item.key async for item in storage.list_prefix("")}
    assert len(objects) == 4, "the mark of a running import is gone"

    copy = shutil.copytree(model_dir, tmp_path / "copy")
    code, again, err = await admin("base-models", "import", str(copy), "--rehearsal", str(rehearsal), "--name", "x")
    assert (code, again) == (0, base_id)
    assert "imported before" in err
    assert {item.key async for item in storage.list_prefix("")} == objects
    assert hashes(model_dir) == before


async def test_two_imports_of_one_folder_at_once_make_one_base_model(
    admin: Admin, model_dir: Path, world: Any, storage: Storage
) -> None:
    answers = await asyncio.gather(*(admin("base-models", "import", str(model_dir)) for _ in range(3)))
    assert [code for code, _, _ in answers] == [0, 0, 0], answers
    assert len({base_id for _, base_id, _ in answers}) == 1
    assert await world.count("select count(*) from base_models") == 1
    assert len([item async for item in storage.list_prefix("")]) == 3, "the losers took their objects back"


async def test_a_broken_folder_leaves_nothing_behind(
    admin: Admin, model_dir: Path, tmp_path: Path, world: Any, storage: Storage
) -> None:
    (model_dir / "tokenizer.json").unlink()
    (model_dir / "model.safetensors").unlink()
    code, out, err = await admin("base-models", "import", str(model_dir))
    assert (code, out) == (1, "")
    assert "model.safetensors: is missing" in err
    assert "tokenizer: is missing" in err
    assert "base_model_incomplete" in err
    assert await world.count("select count(*) from base_models") == 0
    assert [item async for item in storage.list_prefix("")] == []


async def test_accounts_and_keys(admin: Admin, world: Any) -> None:
    code, account_id, err = await admin("accounts", "create", "ACME")
    assert code == 0, err
    code, secret, err = await admin("keys", "create", account_id, "--scopes", "train,read")
    assert code == 0, err
    assert secret.startswith("fusion_live_")
    assert secret not in err
    row = await queries.api_key_by_hash(world.pool, secret_sha256=hashlib.sha256(secret.encode()).digest())
    assert (str(row["account_id"]), sorted(row["scopes"])) == (account_id, ["read", "train"])
    assert secret.startswith(row["prefix"])
    assert len(secret) > len(row["prefix"]) + 20
    code, out, err = await admin("keys", "create", account_id, "--scopes", "train,root")
    assert (code, out) == (1, "")
    assert "unknown scopes root" in err
    code, _, err = await admin("keys", "create", "ffffffff-0000-7000-8000-000000000000")
    assert code == 1
    assert "there is no account" in err


async def test_migrate_is_repeatable_and_prune_reports(admin: Admin, storage: Storage) -> None:
    assert (await admin("migrate"))[:2] == (0, "the schema is up to date")
    code, out, err = await admin("prune", "--dry-run")
    assert code == 0, err
    assert "attempt objects" in out


async def audited(world: Any) -> list[tuple[Any, ...]]:
    """Lines of the audit log since the last call."""
    rows = await world.pool.fetch(
        "select action, target_type, target, actor, reason, before, after from audit_log order by id offset $1",
        world.audited_so_far,
    )
    world.audited_so_far += len(rows)
    return [tuple(row) for row in rows]


async def test_every_direct_command_that_changes_something_has_its_line_in_the_audit_log(
    admin: Admin, model_dir: Path, world: Any
) -> None:
    world.audited_so_far = 0
    user = f"cli:{pwd.getpwuid(os.getuid()).pw_name}"
    ada = ("--actor", "ada", "--reason", "why")

    account = (await admin("accounts", "create", "ACME", *ada))[1]
    made = ("create_account", "account", account, "cli:ada", "why", None, {"name": "ACME"})
    assert await audited(world) == [made]

    secret = (await admin("keys", "create", account, "--scopes", "read"))[1]
    (line,) = await audited(world)
    assert (line[:2], line[3:6]) == (("create_key", "key"), (user, "no reason given", None))
    assert line[6] == {"account_id": account, "name": ANY, "prefix": ANY, "scopes": ["read"]}
    assert secret not in str(line)

    token = (await admin("operators", "create", "bob", "--role", "viewer"))[1]
    (line,) = await audited(world)
    assert (line[:2], line[6]["name"], line[6]["role"]) == (("create_token", "operator_token"), "bob", "viewer")
    assert token not in str(line)
    for _ in range(2):
        assert (await admin("operators", "revoke", line[2], *ada))[0] == 0
    (revoked,) = await audited(world)
    assert (revoked[:4], revoked[5]["revoked_at"]) == (("revoke_token", "operator_token", line[2], "cli:ada"), None)
    assert revoked[6]["revoked_at"] is not None

    base, again = [(await admin("base-models", "import", str(model_dir), *ada))[1] for _ in range(2)]
    assert base == again
    (line,) = await audited(world)
    assert (line[:3], line[5], line[6]["name"]) == (("import_base_model", "base_model", base), None, "tiny")

    for command, target in (("prune", "bucket"), ("retention", "rows")):
        assert (await admin(command, "--dry-run"))[0] == 0
        assert await audited(world) == []
        assert (await admin(command, *ada))[0] == 0
        (line,) = await audited(world)
        assert (line[:5], line[6]["ordered"]) == ((command, "storage", target, "cli:ada", "why"), True)

    await world.pool.execute("delete from schema_migrations where name = '0023_audit_targets.sql'")
    assert (await admin("migrate"))[0] == 0
    (line,) = await audited(world)
    assert (line[:2], line[6]) == (("migrate", "database"), {"newest": "0023_audit_targets.sql"})

    assert (await admin("accounts", "delete", account, *ada))[0] == 0
    (line,) = await audited(world)
    assert (line[:4], line[5]["api_keys"]) == (("delete_account", "account", account, "cli:ada"), 1)


async def test_a_restored_model_has_its_line_in_the_audit_log(admin: Admin, world: Any) -> None:
    job = await world.queue_job()
    model = await world.pool.fetchval(
        "insert into models"
        " (account_id, job_id, name, version, params, config, s3_prefix, manifest, status, deleted_at)"
        " values ($1, $2, 'grown', 1, 1, '{}', 'x', '{}', 'deleted', now()) returning id",
        job.account_id,
        job.id,
    )
    for code in (0, 1):
        assert (await admin("models", "restore", str(model), "-r", "a slip of theirs"))[0] == code
    (line,) = await world.pool.fetch("select * from audit_log")
    assert (line["action"], line["target"], line["reason"]) == ("restore_model", str(model), "a slip of theirs")
    assert (line["before"], line["after"]) == ({"status": "deleted"}, {"status": "ready"})


@pytest.mark.parametrize(
    "command",
    [
        ("prune",),
        ("retention",),
        ("models", "restore", "0198b3a2-6f00-7000-8000-00000000ffff"),
        ("operators", "revoke", "0198b3a2-6f00-7000-8000-00000000ffff"),
        ("accounts", "delete", "0198b3a2-6f00-7000-8000-00000000ffff"),
    ],
)
async def test_what_changes_things_that_exist_needs_a_reason(admin: Admin, command: tuple[str, ...]) -> None:
    for reason, fault in (((), "--reason is missing"), (("--reason", " "), "not blanks alone")):
        code, out, err = await admin(*command, *reason)
        assert (code, out, fault in err) == (1, "", True), err


def test_every_direct_command_but_the_lists_takes_who_and_why() -> None:
    """Those without a context do not ask the admin port, which writes its own lines."""
    apps = [command_line, *(group.typer_instance for group in command_line.registered_groups)]
    callbacks = [one.callback for app in apps if app is not None for one in app.registered_commands]
    direct = [one for one in callbacks if one is not None and "context" not in inspect.signature(one).parameters]
    assert len(direct) == 11
    silent = [one.__name__ for one in direct if not {"reason", "actor"} <= inspect.signature(one).parameters.keys()]
    assert silent == ["show"], "operators list"


async def test_bad_settings_are_all_named(tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", "from fusion_orchestrator.admin_cli import app; app()", "migrate",
        stderr=subprocess.PIPE, env={},
    )  # fmt: skip
    async with asyncio.timeout(60):
        _, err = await process.communicate()
    assert process.returncode == 1
    for name in ("FUSION_DATABASE_URL", "FUSION_S3_ENDPOINT", "FUSION_S3_ACCESS_KEY", "FUSION_S3_SECRET_KEY"):
        assert name in err.decode()


async def test_an_account_is_deleted_with_a_reason_and_a_dry_run_changes_nothing(admin: Admin, world: Any) -> None:
    await world.queue_job()
    account = str(await world.account())
    counted = await admin("accounts", "delete", account, "--reason", "no longer a customer", "--dry-run")
    assert counted[0] == 0, counted
    assert "open jobs            1" in counted[1]
    assert await world.count("select count(*) from accounts where deleted_at is not null") == 0
    assert await admin("accounts", "delete", account, "--reason", "no longer a customer") == (0, counted[1], ANY)
    assert await world.count("select count(*) from audit_log where reason = 'no longer a customer'") == 1
    for again in range(2):
        code, shown, _ = await admin("retention", "--reason", "they asked for it")
        assert (code, f"closed accounts                      {1 - again}" in shown) == (0, True), shown
    code, _, err = await admin("accounts", "delete", account, "--reason", "x")
    assert (code, "there is no account" in err) == (1, True)


async def test_a_model_that_is_not_deleted_cannot_be_restored(admin: Admin, world: Any) -> None:
    code, _, err = await admin("models", "restore", str(await world.account()), "--reason", "asked for")
    assert (code, "was not deleted in the last 7 days" in err) == (1, True)
