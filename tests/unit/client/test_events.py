"""The event stream: one unbroken sequence over connections that break."""

import pytest
from fusion_client import DeadlineError, NotFoundError, UnexpectedAnswerError, event_stream

from .conftest import Answer, problem, sse

_PATH = "GET /api/jobs/job-1/events"


def _stream(*parts: bytes, cut: bool = False) -> Answer:
    body = b"".join(parts)
    return Answer(200, body, {"Content-Type": "text/event-stream"}, length=len(body) + 1000 if cut else None)


def test_a_broken_stream_goes_on_from_the_last_event_seen(server, client):
    server.routes[_PATH] = [
        _stream(b": hello\n\n", sse(1, "queued"), sse(2, "claimed"), b"id: 3\nevent: met", cut=True),
        _stream(),
        problem(503, "not_ready"),
        _stream(sse(2, "claimed"), sse(3, "metrics", step=1), sse(4, "completed"), sse(5, "never")),
    ]
    events = list(client.events("job-1"))
    assert [(event.seq, event.type) for event in events] == [
        (1, "queued"),
        (2, "claimed"),
        (3, "metrics"),
        (4, "completed"),
    ]
    assert events[2].data == {"step": 1}
    assert [asked.headers.get("last-event-id") for asked in server.asked] == [None, "2", "2", "2"]
    assert server.asked[0].headers["accept"] == "text/event-stream"


@pytest.mark.parametrize("ending", ["completed", "failed", "cancelled"])
def test_the_last_event_of_a_job_ends_the_stream(server, client, ending):
    server.routes[_PATH] = [_stream(sse(8, ending))]
    assert [event.type for event in client.events("job-1", after=7)] == [ending]
    assert server.asked[0].headers["last-event-id"] == "7"


def test_stopped_does_not_end_it(server, client):
    server.routes[_PATH] = [_stream(sse(1, "stopped")), _stream(sse(2, "resumed"), sse(3, "completed"))]
    assert [event.type for event in client.events("job-1")] == ["stopped", "resumed", "completed"]


def test_a_refusal_is_not_repeated(server, client):
    server.routes[_PATH] = [problem(404, "not_found", "no such job")]
    with pytest.raises(NotFoundError, match="no such job"):
        list(client.events("job-1"))
    assert len(server.asked) == 1


def test_the_deadline_holds_while_the_server_is_away_and_while_it_only_comments(server, client):
    server.routes[_PATH] = [_stream(b": keepalive\n\n")]
    with pytest.raises(DeadlineError, match="last seen: number 0"):
        list(client.events("job-1", timeout_s=0.3))
    assert len(server.asked) > 2


def test_another_answer_than_a_stream_is_an_error(server, client):
    server.routes[_PATH] = [Answer(200, b"[]", {"Content-Type": "application/json"})]
    with pytest.raises(UnexpectedAnswerError, match="event stream"):
        list(client.events("job-1"))


def test_parsing_is_the_same_however_the_bytes_are_cut():
    stream = (
        sse(1, "a", text="line\u2028separator 😀") + b": c\r\n\r\nid: 2\r\nevent: b\r\ndata: {}\r\n\r\ndata: {}\n\n"
    )
    whole = list(event_stream.parse([stream]))
    assert [(event.seq, event.type) for event in whole] == [(1, "a"), (2, "b")]
    assert whole[0].data == {"text": "line\u2028separator 😀"}
    assert list(event_stream.parse(bytes([byte]) for byte in stream)) == whole


def test_an_endless_line_is_refused(monkeypatch):
    monkeypatch.setattr(event_stream, "MAX_EVENT_BYTES", 100)
    with pytest.raises(UnexpectedAnswerError, match="larger"):
        list(event_stream.parse([b"data: " + b"x" * 200]))
