"""Settings: frozen objects read once from `FUSION_*` and passed down."""

import os
from collections.abc import Mapping
from typing import Literal, TypeVar, get_type_hints

import msgspec

PREFIX = "FUSION_"


class SettingsError(Exception):
    """Names every bad setting at once."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("bad settings:\n" + "\n".join(f"  {problem}" for problem in problems))
        self.problems = problems


class CommonSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What every service needs. The field `database_url` is read from FUSION_DATABASE_URL, and so on."""

    database_url: str
    """postgresql://user:password@host:port/database"""
    s3_endpoint: str
    """Where the services reach S3, as a URL."""
    s3_access_key: str
    """Access key id of a user that may read, write, list and delete in the bucket."""
    s3_secret_key: str
    """Its secret; never logged."""
    s3_public_endpoint: str | None = None
    """Where customers reach the bucket; the internal endpoint if unset."""
    s3_bucket: str = "fusion"
    """The one bucket that holds everything."""
    s3_region: str = "us-east-1"
    """Part of every signature; any word where the store has no regions."""
    log_format: Literal["auto", "json", "pretty"] = "auto"
    """json, pretty, or auto: pretty on a terminal."""


SettingsT = TypeVar("SettingsT", bound=CommonSettings)


def load(cls: type[SettingsT], environ: Mapping[str, str] = os.environ) -> SettingsT:
    """Read a settings class from the environment. Raises SettingsError, which lists every bad or missing name."""
    values: dict[str, object] = {}
    problems: list[str] = []
    hints = get_type_hints(cls)
    for field in msgspec.structs.fields(cls):
        name = PREFIX + field.name.upper()
        raw = environ.get(name)
        if raw is None or raw == "":
            if field.required:
                problems.append(f"{name} is not set")
            continue
        try:
            values[field.name] = msgspec.convert(raw, hints[field.name], strict=False)
        except msgspec.ValidationError as error:
            problems.append(f"{name}: {error}")
    if problems:
        raise SettingsError(problems)
    try:
        return msgspec.convert(values, cls)
    except msgspec.ValidationError as error:  # what the class itself checks, once its fields are right
        raise SettingsError([str(error)]) from error
