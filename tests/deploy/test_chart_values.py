"""Every value that values.yaml documents has an effect: the chart renders otherwise when it is another."""

import functools
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from tests.deploy.chart import CHART, EVERYTHING, MARKS, STORES, TRIAL, render


def leaves(values: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The path of every value that values.yaml documents; an empty mapping is a value, too."""
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, (*path, name))
        else:
            yield (*path, name)


VALUES = yaml.safe_load((CHART / "values.yaml").read_text())
# What a value is changed to where its kind does not tell.
OTHER: dict[str, Any] = {
    "size": "7Gi",
    "shm": "3Gi",
    "cpu": "3",
    "memory": "3Gi",
    "ephemeral-storage": "3Gi",
    "pullPolicy": "Always",
    "mode": "scaledjob",
    "sharding": "fsdp2",
    "endpoint": "http://elsewhere:1",
    "publicEndpoint": "https://public.example.com",
    "env": {"FUSION_X": "1"},
    "tolerations": [{"key": "other", "operator": "Exists"}],
    "pullSecrets": [{"name": "other"}],
    "storeCidrs": ["10.9.0.0/16"],
    "apiCidrs": ["10.9.0.0/16"],
    "dnsTo": [],
    "storesTo": [{"namespaceSelector": {}}],
    "storePorts": [1],
    "s3Ports": [1],
    "webhookCidrExcept": ["10.0.0.0/8"],
    "cpuPercent": 33,
    "replicas": 5,
    "ingressFrom": [{"podSelector": {}}],
    "metricsFrom": [{"podSelector": {}}],
    "operatorsFrom": [{"namespaceSelector": {}}],
}


def other(name: str, value: Any) -> Any:
    if name in OTHER:
        return OTHER[name]
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 31
    return {"other": "other"} if isinstance(value, dict) else "other"


def changed(values: dict[str, Any], path: tuple[str, ...], value: Any) -> dict[str, Any]:
    copy: dict[str, Any] = json.loads(json.dumps(values))
    at = copy
    for name in path[:-1]:
        at = at.setdefault(name, {})
    at[path[-1]] = value
    return copy


def merged(base: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    made = dict(base)
    for name, value in more.items():
        old = made.get(name)
        made[name] = merged(old, value) if isinstance(old, dict) and isinstance(value, dict) and old else value
    return made


@functools.cache
def rendered(values: str) -> str:
    text = json.dumps(render(json.loads(values)), sort_keys=True)
    return re.sub(r'"(password|url|secret-key)": "[A-Za-z0-9+/=]+"', "", text)  # made anew at each rendering


# Everything is switched on, so that no value is without a use.
WHOLE = merged(
    merged(VALUES, STORES | EVERYTHING | MARKS),
    {
        "groups": {"existingSecret": "group"},
        "workerPools": {"one": {}, "group": {"mode": "jobset", "nodes": 2}},
        "workerPoolDefaults": {"gpu": {"class": "h100", "count": 2}, "max": 60},
    },
)
WHOLE["workerPools"] = {"one": {}, "group": {"mode": "jobset", "nodes": 2, "max": 2, "min": 0}}


@pytest.mark.parametrize("path", [path for path in leaves(VALUES) if path[-1] != "nodes"], ids=".".join)
def test_every_documented_value_changes_what_is_rendered(path: tuple[str, ...]) -> None:
    whole = merged(WHOLE, TRIAL) if path[0] == "trialStorage" else WHOLE
    if path == ("api", "replicas"):
        whole = changed(whole, ("api", "autoscaling", "enabled"), False)
    at: Any = whole
    for name in path:
        at = at[name]
    new = {} if path == ("workerPools",) else other(path[-1], at)
    assert rendered(json.dumps(whole)) != rendered(json.dumps(changed(whole, path, new)))
