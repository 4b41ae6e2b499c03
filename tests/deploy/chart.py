"""The chart rendered offline by Helm's own library, with the values that the tests try."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from helm_python import Chart

ROOT = Path(__file__).parents[2]
CHART = ROOT / "deploy/helm/fusion"

STORES: dict[str, Any] = {
    "image": {"registry": "registry.example.com/ml"},
    "postgres": {"existingSecret": "fusion-postgres"},
    "redis": {"existingSecret": "fusion-redis"},
    "s3": {"existingSecret": "fusion-s3", "endpoint": "https://s3.example.com"},
    "networkPolicies": {"storeCidrs": ["10.1.0.0/16"]},
}
TRIAL: dict[str, Any] = {
    "image": {"registry": "registry.example.com/ml"},
    "postgres": {"trial": True}, "redis": {"trial": True}, "s3": {"trial": True},
}  # fmt: skip
POOLS: dict[str, Any] = {
    "h100x1": {"gpu": {"class": "h100", "count": 1}, "max": 4, "min": 1},
    "a100x8": {"mode": "scaledjob", "gpu": {"class": "a100", "count": 8}, "max": 2, "spot": True},
    "h100x16": {"mode": "jobset", "nodes": 2, "gpu": {"class": "h100", "count": 8}, "max": 2, "sharding": "fsdp2"},
    "plain": {"scratch": {"size": "9Gi", "storageClass": "emptyDir"}, "runtimeClass": "nvidia", "priorityClass": "low"},
}
EVERYTHING: dict[str, Any] = {
    "workerPools": POOLS,
    "scaling": {"keda": True},
    "groups": {"existingSecret": "fusion-groups"},
    "api": {
        "autoscaling": {"enabled": True},
        "ingress": {"enabled": True, "host": "fusion.example.com", "className": "nginx", "tlsSecret": "tls"},
        "gateway": {"enabled": True, "host": "fusion.example.com", "parent": {"name": "public", "namespace": "edge"}},
        "env": {"FUSION_SPEND_LIMIT": 7},
        "nodeSelector": {"disk": "ssd"},
        "tolerations": [{"key": "apis", "operator": "Exists"}],
    },
    "caBundle": {"configMap": "company-ca"},
    "webhooks": {"existingSecret": "webhooks"},
    "tracing": {"endpoint": "http://collector:4318"},
    "monitoring": {"serviceMonitor": True, "prometheusRule": True, "dashboard": True, "labels": {"release": "x"}},
    "networkPolicies": {
        "storeCidrs": ["10.1.0.0/16"],
        "operatorsFrom": [{"podSelector": {}}],
        "metricsFrom": [{"namespaceSelector": {}}],
    },
    "image": {"registry": "registry.example.com/ml", "pullSecrets": [{"name": "pull"}]},
}  # fmt: skip
MARKS: dict[str, Any] = {"disruptionMarks": {"enabled": True, "apiCidrs": ["172.20.0.1/32"]}}
CASES: dict[str, dict[str, Any]] = {
    "external stores": STORES,
    "trial stores": TRIAL,
    "everything": STORES | EVERYTHING,
    "everything on trial": TRIAL | EVERYTHING,
    "without KEDA": STORES | {"workerPools": {"h100x1": POOLS["h100x1"]}},
    "marks while a lease is held": STORES | EVERYTHING | MARKS,
    "without network policies": STORES | {"networkPolicies": {"enabled": False}},
}


def render(values: dict[str, Any]) -> list[dict[str, Any]]:
    with Chart.load(CHART) as chart:
        chart.validate_schema(values)
        files = chart.render(values, name="demo", namespace="ml")
    texts = [text for name, text in files.items() if not name.endswith("NOTES.txt")]
    return [found for text in texts for found in yaml.load_all(text, yaml.CSafeLoader) if found]


def pod_specs(found: Any) -> Iterator[dict[str, Any]]:
    """Every pod's spec anywhere in a manifest."""
    if isinstance(found, dict):
        if "containers" in found:
            yield found
        for value in found.values():
            yield from pod_specs(value)
    elif isinstance(found, list):
        for value in found:
            yield from pod_specs(value)


def of_kind(values: dict[str, Any], kind: str) -> dict[str, Any]:
    return {found["metadata"]["name"]: found for found in render(values) if found["kind"] == kind}
