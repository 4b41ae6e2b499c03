"""Secrets of API keys: long, different, recognisable, and not to be had from what is kept."""

from hashlib import sha256

from fusion_core.api_keys import SECRET_PREFIX, new_secret, secret_sha256, visible_prefix


def test_secrets_hold_256_random_bits() -> None:
    secrets = {new_secret() for _ in range(100)}
    assert len(secrets) == 100
    characters_of_256_bits = 43  # in base 64, six bits each
    assert {len(secret.removeprefix(SECRET_PREFIX)) for secret in secrets} == {characters_of_256_bits}


def test_what_is_shown_and_what_is_kept_do_not_give_the_secret_away() -> None:
    secret = new_secret()
    shown = visible_prefix(secret)
    assert secret.startswith(shown)
    assert shown.startswith("fusion_live_")
    assert len(shown) - len(SECRET_PREFIX) == 8, "enough to tell keys apart; 208 bits stay hidden"
    assert secret_sha256(secret) == sha256(secret.encode()).digest()
