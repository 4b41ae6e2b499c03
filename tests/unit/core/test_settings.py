"""Settings from the environment: every bad name at once, nothing guessed."""

from pathlib import Path

import pytest
from fusion_core.settings import LARGEST_FILE_BYTES, CommonSettings, Secret, SettingsError, forget_secrets, load

GOOD = {
    "FUSION_DATABASE_URL": "postgresql://fusion@db/fusion",
    "FUSION_S3_ENDPOINT": "http://s3",
    "FUSION_S3_ACCESS_KEY": "access",
    "FUSION_S3_SECRET_KEY": "hush",
}


class Sized(CommonSettings, frozen=True, kw_only=True):
    port: int = 8000
    every_s: float = 1.5
    verify: bool = True


def test_values_are_read_and_converted_and_the_rest_has_its_default() -> None:
    environ = GOOD | {"FUSION_PORT": "81", "FUSION_VERIFY": "false", "FUSION_UNRELATED": "x", "PORT": "9"}
    settings = load(Sized, environ)
    assert (settings.port, settings.every_s, settings.verify) == (81, 1.5, False)
    assert settings.s3_public_endpoint is None


def test_every_bad_or_missing_name_is_listed_at_once() -> None:
    environ = {"FUSION_S3_ENDPOINT": "http://s3", "FUSION_PORT": "eighty", "FUSION_EVERY_S": "soon"}
    with pytest.raises(SettingsError) as caught:
        load(Sized, environ)
    named = {problem.split()[0].rstrip(":") for problem in caught.value.problems}
    assert named == {
        "FUSION_DATABASE_URL",
        "FUSION_S3_ACCESS_KEY",
        "FUSION_S3_SECRET_KEY",
        "FUSION_PORT",
        "FUSION_EVERY_S",
    }
    assert all(name in str(caught.value) for name in named)


def test_an_empty_value_counts_as_unset() -> None:
    assert load(Sized, GOOD | {"FUSION_PORT": ""}).port == 8000
    with pytest.raises(SettingsError, match="FUSION_DATABASE_URL is not set"):
        load(Sized, GOOD | {"FUSION_DATABASE_URL": ""})


def test_an_error_never_repeats_a_secret() -> None:
    with pytest.raises(SettingsError) as caught:
        load(Sized, GOOD | {"FUSION_PORT": "eighty"})
    assert "hush" not in str(caught.value)


def test_any_setting_may_come_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("from the file\n")
    (tmp_path / "port").write_text("82")
    environ = {name: value for name, value in GOOD.items() if name != "FUSION_S3_SECRET_KEY"}
    files = {"FUSION_S3_SECRET_KEY_FILE": str(tmp_path / "secret"), "FUSION_PORT_FILE": str(tmp_path / "port")}
    settings = load(Sized, environ | files)
    assert (settings.s3_secret_key, settings.port) == ("from the file", 82)


def test_a_file_that_cannot_be_a_setting_is_named(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    (tmp_path / "large").write_bytes(b"x" * (LARGEST_FILE_BYTES + 1))
    (tmp_path / "empty").write_bytes(b"\n")
    environ = GOOD | {
        "FUSION_PORT_FILE": str(tmp_path / "missing"),
        "FUSION_VERIFY_FILE": str(tmp_path / "binary"),
        "FUSION_EVERY_S_FILE": str(tmp_path / "large"),
        "FUSION_S3_SECRET_KEY_FILE": str(tmp_path / "empty"),
        "FUSION_S3_ENDPOINT": "",
        "FUSION_S3_ENDPOINT_FILE": str(tmp_path / "empty"),
    }
    with pytest.raises(SettingsError) as caught:
        load(Sized, environ)
    assert sorted(caught.value.problems) == [
        f"FUSION_EVERY_S_FILE: {tmp_path}/large is larger than 65536 bytes",
        f"FUSION_PORT_FILE: {tmp_path}/missing cannot be read: No such file or directory",
        "FUSION_S3_ENDPOINT is not set",
        "FUSION_S3_SECRET_KEY and FUSION_S3_SECRET_KEY_FILE are both set: unset one of them",
        f"FUSION_VERIFY_FILE: {tmp_path}/binary is not UTF-8",
    ]


class Keyed(CommonSettings, frozen=True, kw_only=True):
    key: Secret | None = None


def test_secrets_and_nothing_else_leave_the_environment() -> None:
    environ = GOOD | {"FUSION_KEY": "k", "PATH": "/bin"}
    forget_secrets(Keyed, environ)
    assert environ == {"FUSION_S3_ENDPOINT": "http://s3", "PATH": "/bin"}
    forget_secrets(Keyed, environ)  # what came from a file was never there
