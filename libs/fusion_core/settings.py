"""Settings: frozen objects read once from `FUSION_*` and passed down."""

import os
from collections.abc import Mapping
from typing import TypeVar, get_type_hints

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
    s3_endpoint: str
    s3_access_key: str
    s3_secret_key: str
    s3_public_endpoint: str | None = None
    """Where customers reach the bucket; the internal endpoint if unset."""
    s3_bucket: str = "fusion"
    s3_region: str = "us-east-1"
    log_format: str = "auto"
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
    return msgspec.convert(values, cls)
