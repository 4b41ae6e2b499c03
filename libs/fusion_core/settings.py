"""Settings: frozen objects read once from `FUSION_*`, or from the files that `FUSION_*_FILE` name, and passed down."""

import os
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_type_hints

import msgspec

PREFIX = "FUSION_"
FILE_SUFFIX = "_FILE"
LARGEST_FILE_BYTES = 64 * 1024


class SettingsError(Exception):
    """Names every bad setting at once."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("bad settings:\n" + "\n".join(f"  {problem}" for problem in problems))
        self.problems = problems


_SECRET = msgspec.Meta(extra={"secret": True})
Secret = Annotated[str, _SECRET]
"""Text that a service removes from its environment once it has read it (`forget_secrets`)."""


class CommonSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What every service needs. The field `database_url` is read from FUSION_DATABASE_URL, and so on."""

    database_url: Secret
    """postgresql://user:password@host:port/database; a pooler in transaction mode will do."""
    listen_url: Secret | None = None
    """Postgres itself, where `FUSION_DATABASE_URL` is a pooler: LISTEN needs a session of its own."""
    prepared_statements: bool = True
    """false behind a pooler that does not keep prepared statements, such as PgBouncer before 1.21."""
    s3_endpoint: str
    """Where the services reach S3, as a URL."""
    s3_access_key: Secret
    """Access key id of a user with this service's policy of `deploy/policies`."""
    s3_secret_key: Secret
    """Its secret; never logged."""
    s3_public_endpoint: str | None = None
    """Where customers reach the bucket; the internal endpoint if unset."""
    s3_bucket: str = "fusion"
    """The one bucket that holds everything."""
    s3_region: str = "us-east-1"
    """Part of every signature; any word where the store has no regions."""
    log_format: Literal["auto", "json", "pretty"] = "auto"
    """json, pretty, or auto: pretty on a terminal."""
    otlp_endpoint: str | None = None
    """Where traces go, as OTLP over HTTP: http://collector:4318. Unset: nothing is traced."""

    @property
    def direct_url(self) -> str:
        """For LISTEN and for what takes longer than a pooler's connection should be held."""
        return self.listen_url or self.database_url


SettingsT = TypeVar("SettingsT", bound=CommonSettings)


def read_setting(name: str, environ: Mapping[str, str] = os.environ) -> str | None:
    """The text of one setting: of the variable `name`, or of the file that `<name>_FILE` names, without the line's end.

    Containers' secrets come as files (Docker, Kubernetes); an empty variable counts as unset. Raises SettingsError.
    """
    value, path = environ.get(name), environ.get(name + FILE_SUFFIX)
    if not path:
        return value or None
    if value:
        raise SettingsError([f"{name} and {name}{FILE_SUFFIX} are both set: unset one of them"])
    try:
        with Path(path).open("rb") as file:
            content = file.read(LARGEST_FILE_BYTES + 1)
        if len(content) > LARGEST_FILE_BYTES:
            raise SettingsError([f"{name}{FILE_SUFFIX}: {path} is larger than {LARGEST_FILE_BYTES} bytes"])
        return content.decode().rstrip("\r\n") or None
    except OSError as error:
        raise SettingsError([f"{name}{FILE_SUFFIX}: {path} cannot be read: {error.strerror}"]) from error
    except UnicodeDecodeError:
        raise SettingsError([f"{name}{FILE_SUFFIX}: {path} is not UTF-8"]) from None


def load(cls: type[SettingsT], environ: Mapping[str, str] = os.environ) -> SettingsT:
    """Read a settings class. Raises SettingsError, which lists every bad or missing name."""
    values: dict[str, object] = {}
    problems: list[str] = []
    hints = get_type_hints(cls)
    for field in msgspec.structs.fields(cls):
        name = PREFIX + field.name.upper()
        try:
            raw = read_setting(name, environ)
            if raw is not None:
                values[field.name] = msgspec.convert(raw, hints[field.name], strict=False)
            elif field.required:
                problems.append(f"{name} is not set")
        except SettingsError as error:
            problems += error.problems
        except msgspec.ValidationError as error:
            problems.append(f"{name}: {error}")
    if problems:
        raise SettingsError(problems)
    try:
        return msgspec.convert(values, cls)
    except msgspec.ValidationError as error:  # what the class itself checks, once its fields are right
        raise SettingsError([str(error)]) from error


def forget_secrets(cls: type[CommonSettings], environ: MutableMapping[str, str] = os.environ) -> None:
    """Remove from the environment what this class reads as a Secret: no child inherits it by mistake.

    The kernel goes on showing what a process was started with (/proc/PID/environ): see `forbid_dumps`.
    """
    for name, hint in get_type_hints(cls, include_extras=True).items():
        if _is_secret(hint):
            environ.pop(PREFIX + name.upper(), None)


def _is_secret(hint: Any) -> bool:
    return _SECRET in getattr(hint, "__metadata__", ()) or any(map(_is_secret, getattr(hint, "__args__", ())))
