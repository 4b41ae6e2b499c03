"""Settings from the environment: every bad name at once, nothing guessed."""

import pytest
from fusion_core.settings import CommonSettings, SettingsError, load

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
