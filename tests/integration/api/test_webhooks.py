"""Webhook endpoints over HTTP: made, changed, rotated, tested, replayed; secrets shown once; limits and owners."""

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID, uuid4

import httpx
import msgspec
import pytest
from fusion_api.app import create_app
from fusion_api.services import open_services
from fusion_api.settings import ApiSettings
from fusion_core.db import webhooks
from fusion_core.db.webhooks import Answer
from fusion_core.settings import CommonSettings
from fusion_core.storage import Storage
from fusion_core.webhooks import EVENT_TYPES, endpoint_secret, shown_secret
from fusion_http.request_context import RequestContext

KEY = "test-key-" * 4
URL = "https://hooks.example.com/fusion"
ONCE = {"Idempotency-Key": "once"}


async def made(customer: Any, **fields: Any) -> Any:
    """The body of a new webhook, with its secret."""
    response = await customer.send("POST", "/api/webhooks", json={"url": URL} | fields)
    assert response.status_code == 201, response.text
    return response.json()


async def end_next(customer: Any, answer: Answer) -> None:
    """What an orchestrator does with the oldest delivery that waits."""
    delivery_id = await customer.pool.fetchval(
        "select id from webhook_deliveries where state = 'pending' order by id limit 1"
    )
    async with customer.pool.acquire() as conn:
        delivery = await webhooks.claim(conn, delivery_id, lease_s=30)
        assert delivery is not None
        assert await webhooks.record(conn, delivery, answer)


async def test_a_webhook_is_made_read_changed_and_deleted(customer: Any, problem: Any) -> None:
    webhook = await made(customer, event_types=["training.completed", "job.failed", "job.failed"], description="mine")
    path = f"/api/webhooks/{webhook['id']}"
    assert webhook["secret"] == shown_secret(endpoint_secret(KEY, UUID(webhook["id"]), 1))
    assert webhook["event_types"] == ["training.completed", "job.failed"]
    got = (await customer.send("GET", path)).json()
    assert got == {name: value for name, value in webhook.items() if name != "secret"}
    assert (await customer.send("GET", "/api/webhooks")).json() == [got]
    assert got["enabled"]
    changed = await customer.send("PATCH", path, json={"url": URL + "/2", "event_types": ["dataset.ready"]})
    assert changed.json() == got | {"url": URL + "/2", "event_types": ["dataset.ready"]}
    off = (await customer.send("PATCH", path, json={"enabled": False})).json()
    assert (off["enabled"], off["disabled_reason"]) == (False, "customer")
    on = (await customer.send("PATCH", path, json={"enabled": True})).json()
    assert (on["enabled"], on["disabled_reason"], on["description"]) == (True, None, "mine")
    assert (await customer.send("DELETE", path)).status_code == 204
    for method, rest in [("GET", ""), ("DELETE", ""), ("GET", "/deliveries"), ("POST", "/test"), ("POST", "/rotate")]:
        problem(await customer.send(method, path + rest), "not_found")
    problem(await customer.send("PATCH", path, json={}), "not_found")


async def test_a_webhook_gets_every_event_unless_it_chooses(customer: Any) -> None:
    assert (await made(customer))["event_types"] == list(EVENT_TYPES)


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"url": "http://hooks.example.com/"}, "/url"),
        ({"url": "https://127.0.0.1/"}, "/url"),
        ({"url": "https://[::ffff:169.254.169.254]/"}, "/url"),
        ({"url": "https://user:password@example.com/"}, "/url"),
        ({"url": "https://example.com/" + "x" * 2048}, "/url"),
        ({"url": ""}, "/url"),
        ({}, "/url"),
        ({"url": URL, "event_types": []}, "/event_types"),
        ({"url": URL, "event_types": ["job.finished"]}, "/event_types/0"),
        ({"url": URL, "event_types": ["webhook.test"]}, "/event_types/0"),
        ({"url": URL, "event_types": ["job.failed"] * 21}, "/event_types"),
        ({"url": URL, "description": "x" * 501}, "/description"),
        ({"url": URL, "secret": "whsec_mine"}, "/secret"),
    ],
)
async def test_what_is_refused_is_named(customer: Any, problem: Any, body: dict[str, Any], pointer: str) -> None:
    refused = problem(await customer.send("POST", "/api/webhooks", json=body), "validation_failed")
    assert [error["pointer"] for error in refused["errors"]] == [pointer]
    if body.get("url"):
        path = f"/api/webhooks/{(await made(customer))['id']}"
        problem(await customer.send("PATCH", path, json=body), "validation_failed")


async def test_an_account_has_so_many_webhooks_and_no_more_also_at_once(customer: Any, problem: Any) -> None:
    answers = await asyncio.gather(
        *(customer.send("POST", "/api/webhooks", json={"url": URL}) for _ in range(webhooks.MAX_ENDPOINTS + 5))
    )
    assert sorted(answer.status_code for answer in answers) == [201] * webhooks.MAX_ENDPOINTS + [409] * 5
    refused = await customer.send("POST", "/api/webhooks", json={"url": URL})
    assert "20 are allowed" in problem(refused, "too_many_webhooks")["detail"]


async def test_a_secret_is_shown_once_and_kept_nowhere(
    customer: Any, problem: Any, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    body = {"url": URL}
    answers = await asyncio.gather(
        *(customer.send("POST", "/api/webhooks", json=body, headers=ONCE) for _ in range(10))
    )
    assert {answer.status_code for answer in answers} == {201}
    (webhook_id,) = {answer.json()["id"] for answer in answers}
    (first,) = {answer.json()["secret"] for answer in answers} - {None}
    path = f"/api/webhooks/{webhook_id}/rotate"
    rotated = await customer.send("POST", path, headers=ONCE)
    again = await customer.send("POST", path, headers=ONCE)
    second = rotated.json()["secret"]
    assert second not in (first, None)
    assert (again.status_code, again.json()["secret"]) == (200, None)
    assert again.headers["Idempotent-Replayed"] == "true"
    assert again.json()["previous_secret_until"] == rotated.json()["previous_secret_until"] is not None
    assert "secret" not in (await customer.send("GET", f"/api/webhooks/{webhook_id}")).json()
    assert "secret" not in (await customer.send("GET", "/api/webhooks")).json()[0]
    problem(
        await customer.send("POST", "/api/webhooks", json=body | {"url": URL + "/b"}, headers=ONCE),
        "idempotency_conflict",
    )
    shown = caplog.text + "".join(capsys.readouterr())
    for table in ("webhook_endpoints", "idempotency_keys"):
        shown += str(await customer.pool.fetch(f"select * from {table}"))  # noqa: S608 - names are the test's own
    for secret in (first, second):
        assert secret not in shown
        assert secret.removeprefix("whsec_") not in shown


async def test_both_secrets_sign_after_a_rotation(customer: Any) -> None:
    webhook = await made(customer)
    rotated = (await customer.send("POST", f"/api/webhooks/{webhook['id']}/rotate")).json()
    await customer.send("POST", f"/api/webhooks/{webhook['id']}/test")
    delivery_id = await customer.pool.fetchval("select id from webhook_deliveries")
    async with customer.pool.acquire() as conn:
        delivery = await webhooks.claim(conn, delivery_id, lease_s=30)
    assert delivery is not None
    secrets = [shown_secret(endpoint_secret(KEY, delivery.endpoint_id, one)) for one in delivery.secret_versions]
    assert secrets == [rotated["secret"], webhook["secret"]]


async def test_a_test_event_is_in_the_log_with_its_message_and_can_be_replayed(customer: Any, problem: Any) -> None:
    path = f"/api/webhooks/{(await made(customer))['id']}"
    sent, again = [await customer.send("POST", f"{path}/test", headers=ONCE) for _ in range(2)]
    assert (sent.status_code, again.status_code) == (202, 202)
    delivery = sent.json()
    assert again.json()["id"] == delivery["id"]
    assert (delivery["type"], delivery["status"], delivery["attempts"]) == ("webhook.test", "pending", 0)
    await end_next(customer, Answer(outcome="failed", status=500, snippet="no", error="answered 500"))
    one = (await customer.send("GET", f"{path}/deliveries/{delivery['id']}")).json()
    assert (one["status"], one["response_status"], one["response_body"]) == ("failed", 500, "no")
    assert one["error"] == "answered 500"
    assert one["message"]["type"] == "webhook.test"
    assert one["message"]["data"] == {"message": "This is a test: the endpoint works."}
    replayed = await customer.send("POST", f"{path}/deliveries/{delivery['id']}/replay")
    assert replayed.status_code == 202
    assert (replayed.json()["status"], replayed.json()["event_id"]) == ("pending", delivery["event_id"])
    await end_next(customer, Answer(outcome="delivered", status=204, snippet=""))
    assert (await customer.send("GET", f"{path}/deliveries/{delivery['id']}")).json()["status"] == "delivered"
    await customer.send("PATCH", path, json={"enabled": False})
    problem(await customer.send("POST", f"{path}/test"), "webhook_disabled")
    problem(await customer.send("POST", f"{path}/deliveries/{delivery['id']}/replay"), "webhook_disabled")
    await customer.send("PATCH", path, json={"enabled": True})
    problem(await customer.send("POST", f"{path}/deliveries/{uuid4()}/replay"), "not_found")
    problem(await customer.send("GET", f"{path}/deliveries/{uuid4()}"), "not_found")


async def test_the_log_is_paged_and_a_filter_stays_in_its_links(customer: Any) -> None:
    path = f"/api/webhooks/{(await made(customer))['id']}"
    for _ in range(5):
        await customer.send("POST", f"{path}/test")
    await end_next(customer, Answer(outcome="delivered", status=200, snippet=""))
    next_page: str | None = f"{path}/deliveries?status=pending&limit=2"
    seen: list[str] = []
    while next_page:
        answer = await customer.send("GET", next_page)
        seen += [one["id"] for one in answer.json()]
        assert {one["status"] for one in answer.json()} <= {"pending"}
        next_page = answer.links["next"]["url"] if "next" in answer.links else None
        assert next_page is None or "status=pending" in next_page
    assert len(set(seen)) == len(seen) == 4
    assert seen == sorted(seen, reverse=True)


async def test_disabling_cancels_what_waits_and_a_replay_sends_it_after_all(customer: Any) -> None:
    path = f"/api/webhooks/{(await made(customer))['id']}"
    delivery = (await customer.send("POST", f"{path}/test")).json()
    for enabled in (False, True):
        await customer.send("PATCH", path, json={"enabled": enabled})
        (one,) = (await customer.send("GET", f"{path}/deliveries")).json()
        assert (one["status"], one["next_attempt_at"]) == ("cancelled", None)
    await customer.send("POST", f"{path}/deliveries/{delivery['id']}/replay")
    assert (await customer.send("GET", f"{path}/deliveries?status=pending")).json()[0]["id"] == delivery["id"]


async def test_another_account_sees_and_does_nothing(customer: Any, new_customer: Any, problem: Any) -> None:
    path = f"/api/webhooks/{(await made(customer))['id']}"
    delivery = (await customer.send("POST", f"{path}/test")).json()
    stranger = await new_customer()
    assert (await stranger.send("GET", "/api/webhooks")).json() == []
    own = f"/api/webhooks/{(await made(stranger))['id']}"
    for method, url in [
        ("GET", path),
        ("DELETE", path),
        ("GET", f"{path}/deliveries"),
        ("GET", f"{path}/deliveries/{delivery['id']}"),
        ("GET", f"{own}/deliveries/{delivery['id']}"),
        ("POST", f"{path}/deliveries/{delivery['id']}/replay"),
        ("POST", f"{own}/deliveries/{delivery['id']}/replay"),
        ("POST", f"{path}/test"),
        ("POST", f"{path}/rotate"),
    ]:
        problem(await stranger.send(method, url), "not_found")
    problem(await stranger.send("PATCH", path, json={"enabled": False}), "not_found")
    assert (await customer.send("GET", path)).json()["enabled"]


@pytest.fixture
async def without_key(common_settings: CommonSettings, storage: Storage) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(ApiSettings(**msgspec.structs.asdict(common_settings)))
    transport = httpx.ASGITransport(RequestContext(app))  # type: ignore[arg-type]
    async with open_services(app), httpx.AsyncClient(transport=transport, base_url="http://api", timeout=30) as client:
        yield client


async def test_a_server_without_a_key_says_so(without_key: httpx.AsyncClient, customer: Any, problem: Any) -> None:
    path = f"/api/webhooks/{(await made(customer))['id']}"
    customer.http = without_key
    for request in ("/api/webhooks", f"{path}/rotate", f"{path}/test"):
        body = {"json": {"url": URL}} if request == "/api/webhooks" else {}
        problem(await customer.send("POST", request, **body), "webhooks_off")
    assert (await customer.send("GET", path)).status_code == 200
