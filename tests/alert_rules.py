"""The rules of deploy/observability, for drills that bring about what an alert is for."""

import re
from pathlib import Path
from typing import Any

import yaml

ALERTS = Path(__file__).parents[1] / "deploy/observability/alerts.yaml"


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]


def threshold(alert: str, metric: str) -> float:
    """The number that the alert's rule says the metric must not exceed."""
    expression = next(rule["expr"] for rule in rules() if rule["alert"] == alert)
    found = re.search(rf"{metric}\b[^<>]*?> (\d+(?:\.\d+)?)", expression)
    assert found is not None, f"{alert} does not compare {metric}"
    return float(found.group(1))
