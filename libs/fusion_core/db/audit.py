"""The audit log's lines: who changed what and why, each written in the transaction of its change."""

from typing import Any

import msgspec

from fusion_core.db.pool import Connection, queries

MAX_REASON = 1000
COMMAND_LINE = "cli:"  # begins the actors of fusion-admin's direct commands
RULE = "rule:"  # begins those of Fusion itself


class By(msgspec.Struct, frozen=True):
    """Who acts, why, and in which request. `actor` is an operator token's name, or begins with COMMAND_LINE or RULE."""

    actor: str
    reason: str
    request_id: str | None = None


async def record(conn: Connection, by: By, action: str, target_type: str, target: str, before: Any, after: Any) -> None:
    """One line, within the caller's transaction; none where nothing changed."""
    if before != after:
        await queries.insert_audit(
            conn,
            actor=by.actor,
            action=action,
            target_type=target_type,
            target=target,
            reason=by.reason,
            before=before,
            after=after,
            request_id=by.request_id,
        )
