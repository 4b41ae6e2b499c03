"""What all actions share: a reason, one transaction, an answer that says what was and what is."""

from collections.abc import Awaitable, Callable
from typing import Annotated

import msgspec
import structlog
from fusion_core.db.admin import Done, LeaseAliveError, UnknownTargetError
from fusion_core.db.audit import MAX_REASON, By
from fusion_core.db.pool import Connection
from fusion_core.db.webhooks import EndpointDisabledError
from fusion_http.problem_details import ProblemError, not_found

from fusion_orchestrator.admin.auth import Caller
from fusion_orchestrator.service import Service

log = structlog.get_logger()


class Why(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of every action. The reason is kept in the audit log; that of a failure is shown to the customer."""

    reason: Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_REASON, pattern=r"\S")]


async def perform(
    service: Service, caller: Caller, data: Why, action: Callable[[Connection, By], Awaitable[Done]]
) -> Done:
    """Do it as this caller. Raises ProblemError not_found, lease_alive or webhook_disabled."""
    request_id = structlog.contextvars.get_contextvars().get("request_id")
    by = By(actor=caller.name, reason=data.reason, request_id=request_id)
    try:
        async with service.pool.acquire() as conn:
            done = await action(conn, by)
    except UnknownTargetError as error:
        raise not_found(str(error)) from error
    except LeaseAliveError as error:
        raise ProblemError("lease_alive", "its worker renews the lease") from error
    except EndpointDisabledError as error:
        raise ProblemError("webhook_disabled", "nothing is sent to it") from error
    log.info("operator_action", action=done.action, target=f"{done.target_type} {done.target}", changed=done.changed)
    return done
