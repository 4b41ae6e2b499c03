"""Operator tokens, for the admin endpoints: like API keys random bits kept only as SHA-256, with one role each."""

import secrets
from typing import Literal

Role = Literal["viewer", "operator"]
ROLES: tuple[Role, ...] = ("viewer", "operator")  # each may do what those before it may
SECRET_PREFIX = "fusion_ops_"  # noqa: S105 - what every secret begins with is public


def new_secret() -> str:
    return SECRET_PREFIX + secrets.token_urlsafe(32)
