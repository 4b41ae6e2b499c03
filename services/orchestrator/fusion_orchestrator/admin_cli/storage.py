"""fusion-admin prune, retention and models: what is kept, and for how long."""

from datetime import timedelta
from typing import Annotated, Any
from uuid import UUID

import msgspec
import typer
from fusion_core.db import admin
from fusion_core.db.admin import UnknownTargetError
from fusion_core.db.audit import By

from fusion_orchestrator import retention
from fusion_orchestrator.admin_cli.running import connected, fail, out, run, settings, stores
from fusion_orchestrator.admin_cli.who import Actor, Why, named
from fusion_orchestrator.prune import Pruner, PruneReport
from fusion_orchestrator.settings import RetentionSettings

models = typer.Typer(no_args_is_help=True, help="Models that customers have made.")


def prune(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be deleted.")] = False,
    min_age_hours: Annotated[float, typer.Option(min=1, help="Younger objects are kept.")] = 24,
    reason: Why = None,
    actor: Actor = None,
) -> None:
    """Delete objects that no row names: what dead attempts, broken imports and expired uploads left behind.

    The orchestrator does this every hour by itself. Objects that belong to a job which this database does not know
    are never touched, and counted as unknown.
    """
    by = None if dry_run else named(actor, reason)
    report = run(prune_as(settings(RetentionSettings), timedelta(hours=min_age_hours), by))
    for field, count in msgspec.structs.asdict(report).items():
        out.print(f"{field.replace('_', ' '):20} {count}")


def retain(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count what would be taken away.")] = False,
    reason: Why = None,
    actor: Actor = None,
) -> None:
    """Take away what is older than its period: superseded checkpoints, old events, expired models and uploads.

    The orchestrator does this every hour by itself, with the periods of its own settings; here they come from the same
    FUSION_* variables. The objects that nothing names afterwards go with `prune`.
    """
    by = None if dry_run else named(actor, reason)
    periods_of = settings(RetentionSettings)
    due = run(_retain(periods_of, by))
    periods = {rule.name: rule.period for rule in retention.rules(periods_of)}
    for name, rows in due.items():
        out.print(f"{name:28} {rows:>9}  {periods.get(name, 'when their last job has ended')}")


@models.command("restore")
def restore_model(
    model: Annotated[UUID, typer.Argument(help="The id of a model that its customer has deleted.")],
    reason: Why = None,
    actor: Actor = None,
) -> None:
    """Undo the deletion of a model, within FUSION_DELETED_MODEL_DAYS of it."""
    by = named(actor, reason)
    periods = settings(RetentionSettings)
    try:
        row = run(_restore(periods, by, model))
    except UnknownTargetError:
        fail(f"{model} was not deleted in the last {periods.deleted_model_days} days; its files may be gone")
    out.print(f"{row['name']} v{row['version']} is back")


async def _retain(periods: RetentionSettings, by: By | None) -> dict[str, int]:
    """By nobody, rows are only counted."""
    async with connected(periods) as conn:
        due = await retention.count(conn, periods)
        if by is None:
            return due
        await admin.order_retention(conn, by, due)
        return await retention.enforce(conn, periods)


async def _restore(periods: RetentionSettings, by: By, model: UUID) -> Any:
    async with connected(periods) as conn:
        return await admin.restore_model(conn, by, model, days=periods.deleted_model_days)


async def prune_as(periods: RetentionSettings, min_age: timedelta, by: By | None) -> PruneReport:
    """One pass as these settings say; by nobody, objects are only counted. Raises what Pruner.run raises."""
    async with stores(periods) as (pool, storage):
        if by is not None:
            async with pool.acquire() as conn:
                await admin.order_prune(conn, by)
        days = periods.deleted_model_days
        return await Pruner(pool, storage, min_age=min_age, model_days=days, dry_run=by is None).run()
