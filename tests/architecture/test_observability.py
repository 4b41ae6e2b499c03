"""Alert rules and the dashboard ask for metrics and labels that exist, and every alert has its runbook."""

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fusion_api.metrics
import fusion_orchestrator.metrics
import fusion_worker.metrics
import pytest
from fusion_orchestrator.admin.app import OPERATIONS as ADMIN
from fusion_orchestrator.admin_cli import app as admin_cli

from tests.alert_rules import rules

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy/observability"
OPERATIONS = (ROOT / "docs/operations.md").read_text()
OF_PROMETHEUS = {"instance", "job"}  # labels that a scrape adds
FUNCTIONS = {"sum", "max", "topk", "bottomk", "rate", "increase", "histogram_quantile", "absent", "time"}
KEYWORDS = {"by", "on", "and", "unless"}
TOKEN = re.compile(
    r"""\s*(?:(?P<string>"[^"]*")|(?P<range>\[(?:\d+[smhd]|\$__rate_interval)\])|(?P<number>\d+(?:\.\d+)?)"""
    r"""|(?P<name>[A-Za-z_]\w*)|(?P<operator>=~|!~|!=|>=|<=|[-+*/<>=(){},]))"""
)


def labels_by_sample() -> dict[str, set[str]]:
    """Every sample that the three services expose, with its labels."""
    found: dict[str, set[str]] = {}
    for service in (fusion_orchestrator.metrics, fusion_worker.metrics, fusion_api.metrics):
        for metric in vars(service.Metrics()).values():
            if not hasattr(metric, "_labelnames"):
                continue
            labels, name = set(metric._labelnames), metric._name
            if metric._type == "histogram":
                found |= {f"{name}_bucket": labels | {"le"}, f"{name}_sum": labels, f"{name}_count": labels}
            else:
                found[name + "_total" * (metric._type == "counter")] = labels
    return found


SAMPLES = labels_by_sample()


def panels() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((FOLDER / "dashboard.json").read_text())["panels"]
    return found


def expressions() -> dict[str, str]:
    found = {rule["alert"]: rule["expr"] for rule in rules()}
    for panel in panels():
        found |= {f"{panel['title']} {target['refId']}": target["expr"] for target in panel.get("targets", ())}
    return found


def tokens(expression: str) -> list[tuple[str, str]]:
    """Raises ValueError for what is none of PromQL's that we use."""
    found, at = [], 0
    while at < len(expression.rstrip()):
        match = TOKEN.match(expression, at)
        if match is None:
            raise ValueError(f"cannot be read from here: {expression[at:]!r}")
        found.append((str(match.lastgroup), match.group(match.lastgroup or 0)))
        at = match.end()
    return found


def faults(expression: str) -> Iterator[str]:
    """Brackets that do not match, names that are no metric, function or keyword, labels that no metric here has."""
    try:
        found = tokens(expression)
    except ValueError as error:
        yield str(error)
        return
    used = {text for kind, text in found if kind == "name" and text in SAMPLES}
    known = set().union(*(SAMPLES[name] for name in used)) | OF_PROMETHEUS
    open_brackets: list[str] = []
    for at, (kind, text) in enumerate(found):
        if text in ("(", "{"):
            grouping = text == "(" and at > 0 and found[at - 1][1] in ("by", "on")
            open_brackets.append("labels" if grouping or text == "{" else "(")
        elif text in (")", "}"):
            if not open_brackets or (text == "}") > (open_brackets[-1] == "labels"):
                yield f"{text} closes nothing"
                return
            open_brackets.pop()
        elif kind == "name" and open_brackets and open_brackets[-1] == "labels":
            if text not in known:
                yield f"no metric here has the label {text}"
        elif kind == "name" and text not in used | FUNCTIONS | KEYWORDS:
            yield f"{text} is no metric"
    if open_brackets:
        yield "a bracket is never closed"
    if not used:
        yield "asks for no metric"


@pytest.mark.parametrize("place", expressions())
def test_every_expression_asks_for_what_there_is(place: str) -> None:
    assert list(faults(expressions()[place])) == []


@pytest.mark.parametrize(
    ("expression", "fault"),
    [
        ("max(fusion_no_such_thing)", "fusion_no_such_thing is no metric"),
        ('fusion_jobs{color="red"}', "no metric here has the label color"),
        ("sum by (color) (fusion_jobs)", "no metric here has the label color"),
        ("max(fusion_jobs", "a bracket is never closed"),
        ("fusion_jobs)", ") closes nothing"),
        ("rate(fusion_rings_total[5 minutes])", "cannot be read from here: '[5 minutes])'"),
        ("1 + 1", "asks for no metric"),
        ("rate(fusion_rings[5m])", "fusion_rings is no metric"),
    ],
)
def test_the_search_for_faults_finds_them(expression: str, fault: str) -> None:
    assert fault in list(faults(expression))


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: str(rule["alert"]))
def test_every_alert_is_complete_and_has_its_runbook(rule: dict[str, Any]) -> None:
    assert set(rule) - {"for"} == {"alert", "expr", "labels", "annotations"}
    assert rule["labels"]["severity"] in ("critical", "warning")
    assert set(rule["annotations"]) == {"summary", "description", "runbook_url"}
    name = rule["alert"]
    assert rule["annotations"]["runbook_url"] == f"docs/operations.md#{name.lower()}"
    section = OPERATIONS.split(f"\n### {name}\n")[1].split("\n#")[0]
    assert [word for word in ("**Look**", "**Do**", "**Escalate**") if word not in section] == []


def test_every_runbook_has_its_alert_and_names_panels_that_exist() -> None:
    names = [rule["alert"] for rule in rules()]
    assert len(set(names)) == len(names) > 20
    assert set(re.findall(r"^### (Fusion\w+)$", OPERATIONS, re.MULTILINE)) == set(names)
    named = {panel for mention in re.findall(r"[Pp]anel \*([\w ]+)\*", OPERATIONS) for panel in [mention]}
    assert named
    assert named - {panel["title"] for panel in panels()} == set()


def test_every_endpoint_and_command_that_a_runbook_names_exists() -> None:
    routes = {f"{method} /admin{nameless(path)}" for one in ADMIN for path in one.paths for method in one.http_methods}
    named = {nameless(mention) for mention in re.findall(r"(?:GET|POST) /admin[\w/{}]*", OPERATIONS)}
    assert len(named) > 10
    assert named - routes == set()
    groups = {group.name for group in admin_cli.registered_groups}
    commands = {one.name or str(getattr(one.callback, "__name__", "")) for one in admin_cli.registered_commands}
    assert set(re.findall(r"fusion-admin ([a-z][a-z-]*)", OPERATIONS)) - commands - groups == set()


# Loops of the services that turn for as long as their process or attempt, and the alert that tells when one does not.
WATCHED = {
    "fusion_orchestrator/service.py:_forever": "FusionLoopStopped",
    "fusion_orchestrator/doorbell.py:listen": "FusionDoorbellDeaf",
    "fusion_orchestrator/doorbell.py:_listen_on": "FusionDoorbellDeaf",
    "fusion_orchestrator/webhooks/tasks.py:run": "FusionWebhookBacklogOld",
    "fusion_api/event_hub.py:_watch": "FusionApiLoopStopped",
    "fusion_worker/daemon.py:_serve": "FusionQueueNotMoving",
    "fusion_worker/daemon.py:_report_for_ever": "FusionWorkerLoopStopped",
    "fusion_worker/doorbell.py:run": "FusionQueueNotMoving",
    "fusion_worker/heartbeat.py:run": "FusionLeasesOverdue",
    "fusion_worker/uploads.py:run": "FusionCheckpointTooOld",
    "fusion_worker/events_pump.py:run": "FusionCheckpointTooOld",
    "fusion_worker/follower.py:run": "FusionWorkerLoopStopped",
    "fusion_worker/follower.py:_mark_for_ever": "FusionWorkerLoopStopped",
}
# They end with the call, stream or connection that they serve; a silent follower ends the attempt.
BOUNDED = {
    "fusion_api/job_events.py:_stream",
    "fusion_worker/retry.py:with_postgres",
    "fusion_worker/group.py:listen",
    "fusion_worker/group_link.py:receive",
    "fusion_worker/group_link.py:_beat_for_ever",
    "fusion_worker/follower.py:_serve",
}


def test_every_loop_that_must_turn_has_an_alert_for_when_it_does_not() -> None:
    found = {
        f"{path.relative_to(service)}:{function.name}"
        for service in (ROOT / "services").iterdir()
        for path in service.rglob("*.py")
        for function in ast.walk(ast.parse(path.read_text()))
        if isinstance(function, ast.AsyncFunctionDef) and any(endless(node) for node in ast.walk(function))
    }
    assert found == WATCHED.keys() | BOUNDED
    assert set(WATCHED.values()) - {rule["alert"] for rule in rules()} == set()


def endless(node: ast.AST) -> bool:
    """`while True` and `while not ...` with a wait in them; other loops end with what they go through."""
    waits = isinstance(node, ast.While) and any(isinstance(inner, ast.Await) for inner in ast.walk(node))
    return waits and isinstance(node.test, ast.Constant | ast.UnaryOp)


def nameless(path: str) -> str:
    return re.sub(r"\{[^}]*\}", "{}", path)


def test_the_dashboard_can_be_drawn() -> None:
    """What Grafana needs of each panel; none lies upon another or outside the 24 columns."""
    taken: set[tuple[int, int]] = set()
    for panel in panels():
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not taken & cells, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells
        if panel["type"] != "row":
            references = [target["refId"] for target in panel["targets"]]
            assert references == sorted(set(references)), panel["title"]
            assert all(target["legendFormat"] for target in panel["targets"])
            assert {panel["datasource"]["uid"], *(one["datasource"]["uid"] for one in panel["targets"])} == {
                "${datasource}"
            }
            assert panel["description"]
            assert panel["fieldConfig"]["defaults"]["unit"]
    assert len({panel["id"] for panel in panels()}) == len({panel["title"] for panel in panels()}) == len(panels())
