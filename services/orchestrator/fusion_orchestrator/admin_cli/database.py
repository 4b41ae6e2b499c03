"""fusion-admin migrate."""

from fusion_core.db import migrate as migrations

from fusion_orchestrator.admin_cli.running import out, run, settings
from fusion_orchestrator.admin_cli.who import Actor, Why, setting_up


def migrate(reason: Why = None, actor: Actor = None) -> None:
    """Bring the database schema up to date.

    Safe to repeat, and safe to run from several machines at once: one of them works, the others wait.
    """
    applied = run(migrations.migrate(settings().direct_url, setting_up(actor, reason)))
    out.print(f"applied: {', '.join(applied)}" if applied else "the schema is up to date")
