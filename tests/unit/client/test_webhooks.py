"""Webhooks through the client and the command."""

import pytest
from fusion_client import InvalidIdError, NewWebhook, ServerError
from fusion_client.cli import app
from typer.testing import CliRunner

from .conftest import as_json, problem

SECRET = "whsec_c2VjcmV0"
NOW = "2026-01-02T03:04:05Z"
WEBHOOK = {
    "id": "w-1",
    "url": "https://example.com/hook",
    "event_types": ["job.failed"],
    "description": "",
    "enabled": True,
    "disabled_reason": None,
    "failing_since": None,
    "gave_up_at": None,
    "previous_secret_until": None,
    "created_at": NOW,
}


def delivery(status="pending", **fields):
    about = {"id": "d-1", "event_id": "job:7", "type": "job.failed", "attempts": 0, "created_at": NOW}
    empty = dict.fromkeys(("last_attempt_at", "next_attempt_at", "response_status", "response_body", "error"))
    return about | empty | {"status": status} | fields


@pytest.fixture
def fusion(server, monkeypatch):
    monkeypatch.setenv("FUSION_API_URL", server.url)
    monkeypatch.setenv("FUSION_API_KEY", "fusion_live_test")
    return lambda *arguments: CliRunner().invoke(app, ["webhooks", *arguments])


def test_making_one_is_never_repeated_and_hides_its_secret(client, server):
    server.routes["POST /api/webhooks"] = [problem(503, "not_ready"), as_json(WEBHOOK | {"secret": SECRET}, 201)]
    with pytest.raises(ServerError):
        client.webhooks.create(WEBHOOK["url"], ["job.failed"])
    made = client.webhooks.create(WEBHOOK["url"])
    assert isinstance(made, NewWebhook)
    assert made.secret == SECRET
    assert SECRET not in repr(made)
    assert [asked.json.get("event_types") for asked in server.asked] == [["job.failed"], None]


def test_each_method_asks_for_its_operation(client, server):
    answers = {
        "GET /api/webhooks": [WEBHOOK],
        "GET /api/webhooks/w-1": WEBHOOK,
        "PATCH /api/webhooks/w-1": WEBHOOK | {"enabled": False, "disabled_reason": "customer"},
        "DELETE /api/webhooks/w-1": None,
        "POST /api/webhooks/w-1/rotate": WEBHOOK | {"secret": SECRET},
        "POST /api/webhooks/w-1/test": delivery(),
        "GET /api/webhooks/w-1/deliveries": [delivery()],
        "GET /api/webhooks/w-1/deliveries/d-1": delivery(),
        "POST /api/webhooks/w-1/deliveries/d-1/replay": delivery(),
    }
    server.routes |= {route: [as_json(answer)] for route, answer in answers.items()}
    webhooks = client.webhooks
    assert [one.id for one in webhooks.list()] == ["w-1"]
    assert webhooks.get("w-1").enabled
    assert webhooks.change("w-1", enabled=False).disabled_reason == "customer"
    webhooks.delete("w-1")
    assert webhooks.rotate("w-1").secret == SECRET
    assert webhooks.test("w-1").status == "pending"
    assert [one.id for one in webhooks.deliveries("w-1")] == ["d-1"]
    assert webhooks.get_delivery("w-1", "d-1").id == webhooks.replay("w-1", "d-1").id
    asked = {f"{one.method} {one.path.partition('?')[0]}" for one in server.asked}
    assert asked == set(answers)
    for wrong in ("", "../keys", "a/b"):
        with pytest.raises(InvalidIdError):
            webhooks.get_delivery("w-1", wrong)


def test_the_command_prints_a_new_secret_alone_on_its_line(server, fusion):
    server.routes["POST /api/webhooks"] = [as_json(WEBHOOK | {"secret": SECRET}, 201)]
    made = fusion("create", WEBHOOK["url"], "--event", "job.failed", "--event", "job.completed")
    assert made.exit_code == 0, made.output
    assert made.stdout.splitlines() == ["w-1", SECRET]
    assert server.asked[0].json["event_types"] == ["job.failed", "job.completed"]


@pytest.mark.parametrize(
    ("end", "exit_code", "said"),
    [
        (delivery("delivered", response_status=204, attempts=1), 0, "delivered: answered 204"),
        (delivery("failed", response_status=500, error="answered 500", attempts=1), 1, "failed: answered 500"),
    ],
)
def test_a_test_event_is_waited_for(server, fusion, end, exit_code, said):
    server.routes["POST /api/webhooks/w-1/test"] = [as_json(delivery(), 202)]
    server.routes["GET /api/webhooks/w-1/deliveries/d-1"] = [as_json(delivery()), as_json(end)]
    ended = fusion("test", "w-1")
    assert (ended.exit_code, ended.stderr.strip()) == (exit_code, said)


def test_lists_say_what_is_wrong_and_cut_nothing(server, fusion):
    off = WEBHOOK | {
        "url": "https://example.com/" + "x" * 300,
        "enabled": False,
        "disabled_reason": "exhausted",
        "failing_since": NOW,
    }
    server.routes["GET /api/webhooks"] = [as_json([off])]
    server.routes["GET /api/webhooks/w-1/deliveries"] = [as_json([delivery("failed", error="answered 500")])]
    assert "disabled (exhausted)" in fusion("list").stdout
    assert off["url"] in fusion("list").stdout
    assert "answered 500" in fusion("deliveries", "w-1").stdout
