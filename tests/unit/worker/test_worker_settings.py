"""Which settings a machine must have: a leader a worker's, a follower neither database nor Redis; and their limits."""

import pytest
from fusion_core.settings import SettingsError
from fusion_worker.__main__ import read
from fusion_worker.follower import FollowerSettings

GROUP = {
    "FUSION_S3_ENDPOINT": "http://s3",
    "FUSION_S3_ACCESS_KEY": "access",
    "FUSION_S3_SECRET_KEY": "secret",
    "FUSION_NODES": "2",
    "FUSION_LEADER_HOST": "leader",
    "FUSION_GROUP_SECRET": "a secret of both machines",
}


@pytest.fixture(autouse=True)
def group(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in GROUP.items():
        monkeypatch.setenv(name, value)


def test_a_follower_needs_no_database_and_no_redis(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUSION_NODE_RANK", "1")
    settings = read()
    assert isinstance(settings, FollowerSettings)
    assert (settings.database_url, settings.redis_url) == ("", "")


@pytest.mark.parametrize("rank", [None, "0"])
def test_a_leader_needs_both(monkeypatch: pytest.MonkeyPatch, rank: str | None) -> None:
    if rank is not None:
        monkeypatch.setenv("FUSION_NODE_RANK", rank)
    with pytest.raises(SettingsError) as refused:
        read()
    assert refused.value.problems == ["FUSION_DATABASE_URL is not set", "FUSION_REDIS_URL is not set"]


@pytest.mark.parametrize("rank", ["00", "-0", "-1", "2", "first"])
def test_a_rank_that_the_group_has_not_is_refused(monkeypatch: pytest.MonkeyPatch, rank: str) -> None:
    monkeypatch.setenv("FUSION_NODE_RANK", rank)
    with pytest.raises(SettingsError, match="FUSION_NODE_RANK"):
        read()


def test_one_process_spreads_no_model_over_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUSION_NODE_RANK", "1")
    monkeypatch.setenv("FUSION_SHARDING", "fsdp2")
    assert read().sharding == "fsdp2"
    for name, value in {
        "FUSION_NODES": "1",
        "FUSION_NODE_RANK": "0",
        "FUSION_DATABASE_URL": "d",
        "FUSION_REDIS_URL": "r",
    }.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match="FUSION_SHARDING: fsdp2 spreads a model"):
        read()
