"""Who acts and why, of the commands that speak to the stores themselves: their lines in the audit log."""

import os
import pwd
from typing import Annotated

import typer
from fusion_core.db.audit import COMMAND_LINE, MAX_REASON, By

from fusion_orchestrator.admin_cli.running import fail

MAX_ACTOR = 200

Actor = Annotated[
    str | None, typer.Option("--actor", help="Who acts, for the audit log; else the user who runs the command.")
]
Why = Annotated[str | None, typer.Option("--reason", "-r", help="Why; it goes into the audit log.")]


def named(actor: str | None, reason: str | None) -> By:
    """For what changes things that exist. Ends the command without a reason, as the admin endpoints do."""
    if reason is None:
        fail("--reason is missing: it goes into the audit log")
    return _by(actor, reason)


def setting_up(actor: str | None, reason: str | None) -> By:
    """For what only makes something new, which explains itself."""
    return _by(actor, "no reason given" if reason is None else reason)


def _by(actor: str | None, reason: str) -> By:
    name = _user() if actor is None else actor
    for option, text, most in (("--actor", name, MAX_ACTOR), ("--reason", reason, MAX_REASON)):
        if not text.strip() or len(text) > most:
            fail(f"{option} has 1 to {most} characters, not blanks alone")
    return By(COMMAND_LINE + name, reason)


def _user() -> str:
    uid = os.getuid()
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:  # as in a container with a user of its own
        return f"uid {uid}"
