"""Events: as pages, as a stream that resumes, wakes, and always ends."""

import asyncio
from collections.abc import Callable
from typing import Any

import asyncpg
import httpx
import pytest
from fusion_api import event_hub, job_events
from fusion_core.db import attempts
from fusion_core.db.attempts import WorkerEvent
from fusion_core.db.pool import queries

Problem = Callable[[httpx.Response, str], Any]
STREAM = {"Accept": "text/event-stream"}


async def test_events_as_pages_and_as_a_stream_that_resumes(customer: Any, base_model_id: str) -> None:
    created = (await customer.send("POST", "/api/jobs", json=await customer.job_body(base_model_id))).json()
    path = f"/api/jobs/{created['id']}/events"
    await customer.complete(await customer.claim(created["id"]))
    events = (await customer.send("GET", path)).json()
    assert [(event["seq"], event["type"]) for event in events] == [(1, "queued"), (2, "claimed"), (3, "completed")]
    assert [event["seq"] for event in (await customer.send("GET", f"{path}?after=1&limit=1")).json()] == [2]
    accept = {"Accept": "text/event-stream"}
    whole = (await customer.send("GET", path, headers=accept)).text
    assert whole.count("\nevent: ") == 3
    rest = (await customer.send("GET", path, headers=accept | {"Last-Event-ID": "2"})).text
    assert "id: 3\nevent: completed\n" in rest
    assert rest.count("\nevent: ") == 1


async def test_a_stream_wakes_for_new_events(customer: Any, base_model_id: str) -> None:
    created = (await customer.send("POST", "/api/jobs", json=await customer.job_body(base_model_id))).json()
    accept = {"Accept": "text/event-stream"}
    stream = asyncio.create_task(customer.send("GET", f"/api/jobs/{created['id']}/events", headers=accept))
    await asyncio.sleep(0.2)
    await customer.send("POST", f"/api/jobs/{created['id']}/cancel")
    text = (await asyncio.wait_for(stream, 10)).text
    assert text.endswith("event: cancelled\ndata: {}\n\n")


async def test_a_metric_event_has_the_fields_of_a_metrics_point(customer: Any, base_model_id: str) -> None:
    job_id = await customer.submit(base_model_id)
    attempt = await customer.claim(job_id)
    point = {"ts": "2026-06-04T02:30:00Z", "step": 1, "cycle": 1, "phase": "train", "loss": 2.5, "lr": 1e-4}
    point |= {"throughput": 4.0, "vram_gb": 0.0, "grad_norm": 1.0, "tokens_per_s": 9.0}
    async with customer.pool.acquire() as conn:
        await attempts.append_events(conn, attempt, [WorkerEvent(1, "metrics", point)])
    (event,) = (await customer.send("GET", f"/api/jobs/{job_id}/events?after=2")).json()
    (listed,) = (await customer.send("GET", f"/api/jobs/{job_id}/metrics")).json()["points"]
    assert event["data"] == listed == point


@pytest.mark.parametrize("after", [3, 99])
async def test_a_stream_past_the_last_event_of_an_ended_job_ends(customer: Any, base_model_id: str, after: int) -> None:
    job_id = await customer.submit(base_model_id)
    await customer.complete(await customer.claim(job_id))
    stream = customer.send("GET", f"/api/jobs/{job_id}/events", headers=STREAM | {"Last-Event-ID": str(after)})
    assert (await asyncio.wait_for(stream, 10)).text == ": connected\n\n"


async def test_an_idle_stream_is_kept_alive(customer: Any, base_model_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_events, "KEEPALIVE_S", 0.1)
    job_id = await customer.submit(base_model_id)
    stream = asyncio.create_task(customer.send("GET", f"/api/jobs/{job_id}/events", headers=STREAM))
    await asyncio.sleep(1)
    await customer.send("POST", f"/api/jobs/{job_id}/cancel")
    assert ": keepalive\n\n" in (await asyncio.wait_for(stream, 10)).text


@pytest.mark.parametrize("end", ["revoked_at = now()", "expires_at = now()"])
async def test_a_stream_ends_when_its_key_does(customer: Any, base_model_id: str, end: str) -> None:
    """Long before the next keepalive: the hub asks for the keys of all streams, too."""
    assert event_hub.POLL_S < 0.5
    job_id = await customer.submit(base_model_id)
    stream = asyncio.create_task(customer.send("GET", f"/api/jobs/{job_id}/events", headers=STREAM))
    await asyncio.sleep(0.5)
    assert not stream.done()
    await customer.pool.execute(f"update api_keys set {end}")  # noqa: S608 the test's own
    assert (await asyncio.wait_for(stream, job_events.KEEPALIVE_S / 2)).status_code == 200
    assert (await customer.send("GET", f"/api/jobs/{job_id}")).status_code == 401


async def test_writing_events_notifies_nobody(customer: Any, base_model_id: str, database_url: str) -> None:
    """A notification serialises commits of the whole server; streams look by themselves."""
    heard: list[object] = []
    connection = await asyncpg.connect(database_url)
    for channel in ("job_event", "webhook_due"):
        await connection.add_listener(channel, lambda *notice: heard.append(notice))
    job_id = await customer.submit(base_model_id)
    await customer.complete(await customer.claim(job_id))
    await connection.execute("select 1")
    await connection.close()
    assert heard == []


@pytest.mark.parametrize("query", ["after=-1", f"after={2**63}", "limit=0", "limit=501"])
async def test_cursors_out_of_range_are_refused(
    customer: Any, base_model_id: str, problem: Problem, query: str
) -> None:
    job_id = await customer.submit(base_model_id)
    errors = problem(await customer.send("GET", f"/api/jobs/{job_id}/events?{query}"), "validation_failed")["errors"]
    assert [error["pointer"] for error in errors] == [query.split("=", maxsplit=1)[0]]


async def test_fifty_streams_of_one_job_look_once_for_all(
    customer: Any, base_model_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks, look = [], job_events._read

    async def counted(*arguments: Any) -> Any:
        looks.append(arguments)
        return await look(*arguments)

    monkeypatch.setattr(job_events, "_read", counted)
    job_id = await customer.submit(base_model_id)
    path = f"/api/jobs/{job_id}/events"
    streams = [asyncio.create_task(customer.send("GET", path, headers=STREAM)) for _ in range(50)]
    while len(looks) < 50:  # each once when it connects; those that connect together share, so a poll may end the wait
        before = len(looks)
        await asyncio.sleep(event_hub.POLL_S)
        if len(looks) == before:
            break
    connected = len(looks)
    await customer.send("POST", f"/api/jobs/{job_id}/cancel")
    ended = await asyncio.wait_for(asyncio.gather(*streams), 30)
    assert all("event: cancelled\n" in stream.text for stream in ended)
    assert len(looks) - connected <= 5


async def test_an_event_that_comes_while_a_stream_looks_is_not_missed(
    customer: Any, base_model_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    look, looked = job_events._read, asyncio.Event()

    async def slow(*arguments: Any) -> Any:
        found = await look(*arguments)
        looked.set()
        await asyncio.sleep(3 * event_hub.POLL_S)  # the hub rings meanwhile, once
        return found

    monkeypatch.setattr(job_events, "_read", slow)
    job_id = await customer.submit(base_model_id)
    stream = asyncio.create_task(customer.send("GET", f"/api/jobs/{job_id}/events", headers=STREAM))
    await looked.wait()
    await customer.send("POST", f"/api/jobs/{job_id}/cancel")
    assert "event: cancelled\n" in (await asyncio.wait_for(stream, 10)).text, "the next keepalive is 15 s away"


async def test_events_and_metrics_that_are_no_longer_kept_say_so(
    customer: Any, base_model_id: str, problem: Problem
) -> None:
    job_id = await customer.submit(base_model_id)
    await customer.complete(await customer.claim(job_id))
    await queries.delete_outbox_of_jobs(customer.pool, job_ids=[job_id])
    await queries.delete_histories(customer.pool, job_ids=[job_id])
    for asked in ("events", "events?after=1", "metrics"):
        problem(await customer.send("GET", f"/api/jobs/{job_id}/{asked}"), "history_gone")
    stream = await customer.send("GET", f"/api/jobs/{job_id}/events", headers=STREAM | {"Last-Event-ID": "1"})
    problem(stream, "history_gone")
    assert (await customer.send("GET", f"/api/jobs/{job_id}")).json()["status"] == "completed"
