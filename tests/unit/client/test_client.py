"""Requests, retries, errors and waits against a real server."""

import os
from datetime import UTC, datetime

import pytest
from fusion_client import (
    AuthenticationError,
    ConfigurationError,
    ConflictError,
    ConnectionFailedError,
    DatasetFailedError,
    DeadlineError,
    Fusion,
    InvalidIdError,
    InvalidRequestError,
    NotFoundError,
    RateLimitedError,
    Retries,
    ServerError,
    TransferError,
    UnexpectedAnswerError,
)

from .conftest import Answer, as_json, dataset, job, job_detail, problem


def test_a_job_is_submitted_with_one_key_in_body_and_header(server, client):
    server.routes["POST /api/jobs"] = [as_json(job(), 201)]
    made = client.create_job(base_model_id="b", dataset_id="d", hyperparams={"turns": 2}, idempotency_key="run-1")
    asked = server.asked[0]
    assert made.id == "job-1"
    assert made.created_at == datetime(2026, 6, 4, 2, 30, tzinfo=UTC)
    assert asked.headers["authorization"] == "Bearer fusion_live_test"
    assert asked.headers["idempotency-key"] == "run-1"
    assert asked.json == {
        "type": "train",
        "idempotency_key": "run-1",
        "base_model_id": "b",
        "dataset_id": "d",
        "hyperparams": {"turns": 2},
    }


def test_a_repeated_submission_keeps_its_key(server, client):
    server.routes["POST /api/jobs"] = [problem(503, "not_ready"), as_json(job(), 201)]
    client.create_job(base_model_id="b", dataset_id="d")
    first, second = (asked.json["idempotency_key"] for asked in server.asked)
    assert first == second


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_passing_errors_are_retried(server, client, status):
    server.routes["GET /api/jobs/job-1"] = [problem(status, "x"), problem(status, "x"), as_json(job_detail("running"))]
    assert client.get_job("job-1").status == "running"
    assert len(server.asked) == 3


def test_retry_after_is_honoured(server, client, monkeypatch):
    waits: list[float] = []
    monkeypatch.setattr("fusion_client.transport.time.sleep", waits.append)
    server.routes["GET /api/jobs/job-1"] = [
        problem(429, "x", **{"Retry-After": "7"}),
        problem(503, "x", **{"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}),
        as_json(job_detail()),
    ]
    client.get_job("job-1")
    assert waits[0] == 7
    assert waits[1] < 1


def test_a_retry_after_beyond_a_minute_is_the_callers_to_wait(server, client):
    server.routes["GET /api/jobs/job-1"] = [problem(429, "rate_limited", **{"Retry-After": "3600"})]
    with pytest.raises(RateLimitedError):
        client.get_job("job-1")
    assert len(server.asked) == 1


def test_a_broken_connection_is_retried(server, client):
    server.routes["GET /api/jobs/job-1"] = [Answer(200, b'{"id"', length=500), as_json(job_detail())]
    assert client.get_job("job-1").id == "job-1"


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (401, AuthenticationError),
        (403, AuthenticationError),
        (404, NotFoundError),
        (409, ConflictError),
        (422, InvalidRequestError),
        (500, ServerError),
    ],
)
def test_a_refusal_has_all_that_the_problem_says_and_is_not_repeated(server, client, status, kind):
    errors = [{"pointer": "/hyperparams/turns", "detail": "at most 10"}]
    server.routes["POST /api/jobs"] = [problem(status, "some_code", "2 fields", errors, **{"x-request-id": "r-1"})]
    with pytest.raises(kind) as caught:
        client.create_job(base_model_id="b", dataset_id="d")
    error = caught.value
    assert (error.status, error.code, error.detail, error.request_id) == (status, "some_code", "2 fields", "r-1")
    assert error.errors == ({"pointer": "/hyperparams/turns", "detail": "at most 10"},)
    assert len(server.asked) == 1


def test_the_last_retry_raises_what_it_got(server, client):
    server.routes["GET /api/jobs/job-1"] = [Answer(502, b"<html>bad gateway</html>")]
    with pytest.raises(ServerError, match="Bad Gateway"):
        client.get_job("job-1")
    assert len(server.asked) == 4


def test_creating_a_key_is_never_repeated_and_its_secret_is_not_shown(server, client):
    server.routes["POST /api/keys"] = [problem(503, "x")]
    with pytest.raises(ServerError):
        client.create_key("ci", ["read"])
    assert len(server.asked) == 1
    made = {"id": "k", "prefix": "fusion_live_ab", "scopes": ["read"], "secret": "fusion_live_abcd"}
    server.routes["POST /api/keys"] = [as_json(made, 201)]
    key = client.create_key("ci", ["read"])
    assert key.secret == "fusion_live_abcd"
    assert "abcd" not in repr(key)


def test_another_shape_is_an_error_and_new_fields_are_not(server, client):
    server.routes["GET /api/jobs/job-1"] = [as_json(job_detail() | {"eta_s": 7})]
    assert client.get_job("job-1").id == "job-1"
    server.routes["GET /api/jobs/job-1"] = [as_json({"id": "job-1"})]
    with pytest.raises(UnexpectedAnswerError, match="/api/jobs/job-1"):
        client.get_job("job-1")


def test_lists_follow_their_pages_up_to_the_limit(server, client):
    def page(asked):
        after = int(asked.path.partition("after=")[2] or 0)
        items = [job(id=f"job-{n}") for n in range(after, after + 2)]
        return as_json(items, Link=f'<https://elsewhere.example/api/jobs?limit=5&after={after + 2}>; rel="next"')

    server.routes["GET /api/jobs"] = page
    assert [one.id for one in client.list_jobs(limit=5)] == [f"job-{n}" for n in range(5)]
    assert len(server.asked) == 3


def test_waiting_for_a_dataset(server, client):
    server.routes["GET /api/datasets/d-1"] = [as_json(dataset("validating")), as_json(dataset("ready", shard_count=2))]
    assert client.wait_dataset("d-1", poll_s=0.01).shard_count == 2


def test_a_dataset_that_failed_names_its_lines(server, client):
    errors = [{"file": "a.jsonl", "line": 3, "detail": "not JSON"}]
    failure = {"code": "invalid_row", "message": "a.jsonl, line 3", "errors": errors}
    server.routes["GET /api/datasets/d-1"] = [as_json(dataset("failed", error=failure))]
    with pytest.raises(DatasetFailedError) as caught:
        client.wait_dataset("d-1")
    assert caught.value.code == "invalid_row"
    assert caught.value.errors[0]["line"] == 3


def test_waiting_for_a_dataset_has_a_deadline(server, client):
    server.routes["GET /api/datasets/d-1"] = [as_json(dataset("validating"))]
    with pytest.raises(DeadlineError, match="still validating"):
        client.wait_dataset("d-1", timeout_s=0.1, poll_s=0.02)


def test_an_upload_streams_the_file_without_the_key_and_repeats_a_broken_put(server, client, tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_bytes(os.urandom(3_000_000))
    presigned = {"upload_id": "u-1", "key": "tmp/x", "url": f"{server.url}/bucket/x?signature=1", "method": "PUT"}
    server.routes["POST /api/uploads/presign"] = [as_json(presigned)]
    server.routes["PUT /bucket/x"] = [Answer(503), Answer(200)]
    seen: list[int] = []
    assert client.upload(path, lambda done, size: seen.append(done)) == "u-1"
    presign, _, put = server.asked
    assert presign.json == {"filename": "train.jsonl", "content_type": "application/jsonl"}
    assert put.body == path.read_bytes()
    assert put.headers["content-type"] == "application/jsonl"
    assert "authorization" not in put.headers
    assert "transfer-encoding" not in put.headers
    assert seen[-1] == 3_000_000


def test_a_large_file_goes_in_parts_of_which_a_broken_one_is_sent_again(server, client, tmp_path, monkeypatch):
    monkeypatch.setattr("fusion_client.client.ONE_PUT_BYTES", 10)
    monkeypatch.setattr("fusion_client.uploads._URLS_AT_ONCE", 2)
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"aaaaabbbbbcc")
    shown = {"upload_id": "u-1", "key": "k", "filename": "rows.jsonl", "status": "waiting", "size": 12, "part_size": 5}
    shown |= {"parts": 3, "arrived": [], "missing": [1, 2, 3], "expires_at": "2026-06-04T02:30:00Z"}
    server.routes["POST /api/uploads/multipart"] = [as_json(shown, 201)]

    def sign(asked):
        numbers = asked.json["part_numbers"]
        return as_json(
            [{"part_number": n, "size": min(5, 12 - 5 * (n - 1)), "url": f"{server.url}/part/{n}"} for n in numbers]
        )

    server.routes["POST /api/uploads/u-1/parts"] = sign
    server.routes["PUT /part/1"] = [Answer()]
    server.routes["PUT /part/2"] = [Answer(503), Answer()]
    server.routes["PUT /part/3"] = [Answer()]
    server.routes["POST /api/uploads/u-1/complete"] = [as_json(shown | {"status": "complete", "missing": []})]
    seen = []
    assert client.upload(path, lambda done, size: seen.append((done, size))) == "u-1"
    assert (sorted(done for done, _ in seen), seen[-1]) == ([5, 10, 12], (12, 12))
    puts = [asked for asked in server.asked if asked.method == "PUT"]
    assert sorted((asked.path, asked.body) for asked in puts) == [
        ("/part/1", b"aaaaa"), ("/part/2", b"bbbbb"), ("/part/2", b"bbbbb"), ("/part/3", b"cc"),
    ]  # fmt: skip
    assert not any("authorization" in asked.headers for asked in puts)
    assert server.asked[0].json == {"filename": "rows.jsonl", "content_type": "application/jsonl", "size": 12}


def test_a_delete_whose_answer_was_lost_is_done(server, client):
    server.routes["DELETE /api/keys/k-1"] = [Answer(503), problem(404, "not_found")]
    client.revoke_key("k-1")
    server.routes["DELETE /api/keys/k-2"] = [problem(404, "not_found")]
    with pytest.raises(NotFoundError):
        client.revoke_key("k-2")


def test_an_expired_upload_url_says_what_to_do(server, client, tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_bytes(b"x")
    presigned = {"upload_id": "u-1", "key": "tmp/x", "url": f"{server.url}/bucket/x", "method": "PUT"}
    server.routes["POST /api/uploads/presign"] = [as_json(presigned)]
    server.routes["PUT /bucket/x"] = [Answer(403)]
    with pytest.raises(TransferError, match="expired"):
        client.upload(path)


def test_no_server_is_a_connection_error_that_names_the_address():
    with (
        Fusion("http://127.0.0.1:9/api/", "key", retries=Retries(2, 0.01)) as client,
        pytest.raises(ConnectionFailedError, match=r"127\.0\.0\.1:9 .*FUSION_API_URL"),
    ):
        client.list_jobs()


@pytest.mark.parametrize("job_id", ["", "..", "a/b", "a?b", "a b"])
def test_an_id_never_becomes_another_path(client, server, job_id):
    with pytest.raises(InvalidIdError):
        client.get_job(job_id)
    assert not server.asked


def test_the_environment_is_checked(monkeypatch):
    monkeypatch.delenv("FUSION_API_KEY", raising=False)
    monkeypatch.setenv("FUSION_API_URL", "http://127.0.0.1:1")
    with pytest.raises(ConfigurationError, match="set FUSION_API_KEY"):
        Fusion.from_environment()
    with pytest.raises(ConfigurationError, match="http"):
        Fusion("localhost:8000", "key")
    with pytest.raises(ConfigurationError, match="key"):
        Fusion("http://localhost:8000", "key\n")
