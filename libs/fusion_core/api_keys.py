"""API keys: 256 random bits behind a visible prefix, kept only as SHA-256.

A plain hash is right here: unlike a password, a random key of this length cannot be guessed, so stretching it would
only make every request slower.
"""

import hashlib
import secrets

SCOPES = ("train", "read", "datasets", "models", "billing")
SECRET_PREFIX = "fusion_live_"  # noqa: S105 - what every secret begins with is public
VISIBLE_CHARACTERS = 20


def new_secret() -> str:
    return SECRET_PREFIX + secrets.token_urlsafe(32)


def visible_prefix(secret: str) -> str:
    return secret[:VISIBLE_CHARACTERS]


def secret_sha256(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()
