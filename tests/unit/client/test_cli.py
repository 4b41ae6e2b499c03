"""The `fusion` command and its live view of a job."""

import io
import json
import re
from pathlib import Path

import pytest
from fusion_client import Event
from fusion_client.cli import app
from fusion_client.job_view import JobView
from fusion_client.progress import duration, watch
from rich.console import Console
from typer.testing import CliRunner

from .conftest import Answer, as_json, dataset, job, job_detail, problem, sse

_POINT = {"cycle": 1, "loss": 2.5, "lr": 1e-4, "throughput": 2.0, "tokens_per_s": 512.0, "grad_norm": 1.0}
_INTERRUPTED_JOB = [
    sse(1, "queued"),
    sse(2, "claimed", attempt=1, resume_step=0),
    sse(3, "phase", phase="growing", message=""),
    sse(4, "grown", params_before=3_000_000, params_after=4_500_000, function_preservation=0.0),
    sse(5, "evaluation", step=0, turn=0, perplexity=50.0, tokens=9),
    sse(6, "metrics", step=10, **_POINT),
    sse(7, "checkpoint", step=8, turn_end=False, bytes=5),
    sse(8, "metrics", step=12, **_POINT),
    sse(9, "interrupted", reason="lost", resume_step=8, retries=1),
    sse(10, "claimed", attempt=2, resume_step=8),
    sse(11, "metrics", step=9, **_POINT),
    sse(12, "evaluation", step=20, turn=1, perplexity=40.0, tokens=9),
    sse(13, "completed", output_model_id="m-1"),
]


@pytest.fixture
def finished_job(server):
    stream = Answer(200, b"".join(_INTERRUPTED_JOB), {"Content-Type": "text/event-stream"})
    server.routes["GET /api/jobs/job-1/events"] = [stream]
    server.routes["GET /api/jobs/job-1"] = [as_json(job_detail("completed", retries=1, output_model_id="m-1"))]


@pytest.fixture
def fusion(server, monkeypatch):
    monkeypatch.setenv("FUSION_API_URL", server.url)
    monkeypatch.setenv("FUSION_API_KEY", "fusion_live_test")
    return lambda *arguments: CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.mark.parametrize("terminal", [True, False])
def test_watching_tells_the_story_and_answers_the_job(client, finished_job, terminal):
    output, events = io.StringIO(), []
    console = Console(file=output, force_terminal=terminal, width=160, color_system=None)
    ended = watch(client, "job-1", console, events.append)
    assert (ended.status, ended.output_model_id) == ("completed", "m-1")
    assert [event.seq for event in events] == list(range(1, 14))
    told = output.getvalue()
    assert "grown from 3,000,000 to 4,500,000 parameters" in told
    assert "interrupted: its worker was lost; it goes on from step 8 (retries: 1)" in told
    assert "held-out perplexity after turn 1: 40.000" in told
    assert ("step 20/20" in told) is terminal


def test_the_view_goes_back_with_an_interruption_and_on_from_there():
    view, steps = JobView(20), []
    for raw in _INTERRUPTED_JOB[:11]:
        seq, kind, data = (line.partition(b": ")[2].decode() for line in raw.strip().splitlines())
        view.apply(Event(seq=int(seq), type=kind, data=json.loads(data)))
        steps.append((view.status, view.step))
    assert steps[7:] == [("training", 12), ("preempted", 8), ("preparing", 8), ("training", 9)]
    assert view.retries == 1
    assert view.seconds_left == (20 - 9) / 2.0


def test_an_event_type_of_a_newer_server_is_passed_over():
    assert JobView(20).apply(Event(seq=1, type="teleported", data={})) is None


@pytest.mark.parametrize(("seconds", "shown"), [(0, "0:00"), (65.4, "1:05"), (3723, "1:02:03")])
def test_durations(seconds, shown):
    assert duration(seconds) == shown


def test_train_submits_and_watches(server, fusion, finished_job):
    server.routes["POST /api/jobs"] = [as_json(job(), 201)]
    done = fusion("train", "--base-model", "b", "--dataset", "d", "--turns", 2, "--output-name", "x")
    assert (done.exit_code, done.stdout) == (0, "job-1\n")
    sent = server.asked[0].json
    assert sent["hyperparams"] == {"turns": 2, "output_name": "x"}
    assert "fusion download m-1 DIR" in done.stderr


def test_watching_a_job_that_fails_is_a_failure(server, fusion):
    stream = Answer(200, sse(1, "failed", code="nonfinite_loss", message="boom"), {"Content-Type": "text/event-stream"})
    server.routes["GET /api/jobs/job-1/events"] = [stream]
    server.routes["GET /api/jobs/job-1"] = [as_json(job_detail("failed"))]
    done = fusion("watch", "job-1")
    assert done.exit_code == 1
    assert "failed: boom (nonfinite_loss)" in done.stderr


def test_upload_waits_and_names_every_wrong_line(server, fusion, tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_bytes(b"oops\n")
    presigned = {"upload_id": "u-1", "key": "k", "url": f"{server.url}/bucket/x", "method": "PUT"}
    server.routes["POST /api/uploads/presign"] = [as_json(presigned)]
    server.routes["PUT /bucket/x"] = [Answer(200)]
    server.routes["POST /api/datasets"] = [as_json(dataset("validating"), 201)]
    place = {
        "file": "train.jsonl",
        "column": 1,
        "rule": "invalid_json",
        "detail": "not JSON",
        "fix": "Write one object.",
    }
    errors = [place | {"line": n} for n in range(1, 21)]
    failure = {"code": "invalid_row", "message": "30 lines are wrong", "errors": errors}
    server.routes["GET /api/datasets/d-1"] = [as_json(dataset("failed", error=failure))]
    done = fusion("upload", path)
    assert done.exit_code == 1
    assert "error: 30 lines are wrong (invalid_row)" in done.stderr
    assert "train.jsonl:20:1: not JSON. Write one object." in done.stderr
    assert "the whole report: fusion report d-1" in done.stderr
    server.routes["GET /api/datasets/d-1"] = [as_json(dataset("ready", rows=7, shard_count=2, skipped_rows=3))]
    done = fusion("upload", path, "--name", "mine", "--policy", "skip")
    assert (done.exit_code, done.stdout) == (0, "d-1\n")
    assert "7 rows in 2 shards, 3 rows skipped" in done.stderr
    made = [a.json for a in server.asked if a.path == "/api/datasets"][-1]
    assert made == {"upload_ids": ["u-1"], "name": "mine", "policy": "skip"}


def test_a_report_is_shown_for_people_and_as_json(server, fusion):
    error = {"file": "a.jsonl", "line": 3, "pointer": "/text", "rule": "wrong_type", "detail": "this is a number"}
    report = {
        "dataset_id": "d-1",
        "status": "failed",
        "policy": "fail",
        "rows": 1200,
        "rows_by_type": {"text": 1200},
        "skipped_rows": 1500,
        "duplicate_rows": 2,
        "text_bytes": 9,
        "error_count": 1500,
        "errors_by_rule": {"wrong_type": 1500},
        "errors": [error | {"fix": "Write a string."}],
        "next_after": None,
    }
    server.routes["GET /api/datasets/d-1/report"] = [as_json(report)]
    done = fusion("report", "d-1")
    assert done.exit_code == 0
    assert "1,200 rows (1,200 text), 9 bytes of text\n1,500 bad rows, 2 exact duplicates" in done.stdout
    assert "a.jsonl:3: /text this is a number. Write a string.\n1,500 errors; the first 1 are listed" in done.stdout
    shown = json.loads(fusion("report", "d-1", "--json").stdout)
    assert shown["errors"][0]["line"] == 3


def test_refusals_show_every_field_and_the_request_id(server, fusion):
    errors = [{"pointer": "/hyperparams/turns", "detail": "at most 10"}]
    server.routes["POST /api/jobs"] = [problem(422, "validation_failed", "1 field", errors, **{"x-request-id": "r-9"})]
    done = fusion("train", "--base-model", "b", "--dataset", "d", "--turns", 99)
    assert done.exit_code == 1
    assert "error: 1 field (422 validation_failed)" in done.stderr
    assert "/hyperparams/turns: at most 10" in done.stderr
    assert "request id r-9" in done.stderr


def test_lists_estimate_and_cancel(server, fusion):
    model = {"id": "b-1", "family": "falcon", "name": "f", "version": "bf16", "params": 1550000000, "precision": "bf16"}
    server.routes["GET /api/base-models"] = [as_json([model])]
    assert "1,550,000,000" in fusion("base-models").stdout
    server.routes["GET /api/jobs"] = [as_json([job("running", retries=3)])]
    assert "running" in fusion("jobs").stdout
    line = {"label": "training", "qty": 1280000, "unit": "1M-tokens", "rate": 45.0, "amount": 57.6}
    growth = {"label": "growth", "qty": 1000, "unit": "params", "rate": 25.0, "amount": 0.000025}
    answer = {"total_usd": 57.6, "unit": "1M-tokens", "qty": 1.28, "line_items": [line, growth]}
    server.routes["POST /api/pricing/estimate"] = [as_json(answer)]
    assert "$25 per 1B-params" in fusion("estimate", "--params-before", 1, "--params-after", 2).stdout
    assert "$57.600000" in fusion("estimate", "--params-before", 1, "--params-after", 2).stdout
    server.routes["POST /api/jobs/job-1/cancel"] = [as_json(job_detail("running", cancel_requested=True))]
    assert "stops at the next step" in fusion("cancel", "job-1").stderr


def test_without_an_address_it_says_what_to_set(monkeypatch):
    monkeypatch.delenv("FUSION_API_URL", raising=False)
    monkeypatch.delenv("FUSION_API_KEY", raising=False)
    done = CliRunner().invoke(app, ["jobs"])
    assert done.exit_code == 1
    assert "set FUSION_API_URL and FUSION_API_KEY" in done.stderr


def test_a_job_of_each_type_is_submitted_with_what_was_given(fusion, server):
    server.routes["POST /api/jobs"] = [as_json(job())]
    ran = fusion(
        "finetune", "--dataset", "d", "--source-model", "m", "--steps", 10, "--label", "team=a=b", "--no-watch"
    )
    assert (ran.exit_code, ran.stdout) == (0, "job-1\n")
    ran = fusion("contract", "--source-model", "m", "--ratio", 0.25, "--idempotency-key", "k", "--no-watch")
    assert (ran.exit_code, ran.stdout) == (0, "job-1\n")
    finetune, contract = (json.loads(request.body) for request in server.asked)
    assert finetune["labels"] == {"team": "a=b"}
    assert finetune["hyperparams"] == {"steps": 10}, "the server's defaults are the server's"
    assert finetune.items() >= {"type": "finetune", "dataset_id": "d", "source_model_id": "m"}.items()
    assert contract == {
        "type": "contract",
        "idempotency_key": "k",
        "labels": {},
        "hyperparams": {"source_model_id": "m", "contraction_ratio": 0.25},
    }
    assert fusion("contract", "--source-model", "m", "--label", "team").exit_code == 2


def test_any_hyperparameter_can_be_set_and_priced(fusion, server):
    answer = {
        "total_usd": 2.0,
        "unit": "1M-tokens",
        "qty": 1,
        "line_items": [],
        "params_before": 10,
        "params_after": 13,
    }
    server.routes["POST /api/pricing/estimate"] = [as_json(answer)]
    sets = ("--set", "growth_factor=1.3", "--set", "growth_axis=width", "--set", "deterministic=false")
    ran = fusion("train", "--base-model", "b", "--dataset", "d", *sets, "--estimate")
    assert ran.exit_code == 0
    assert "$2.000000" in ran.stdout
    assert "10 parameters become 13" in ran.stderr
    (request,) = server.asked
    job = json.loads(request.body)["job"]
    assert job["hyperparams"] == {"growth_factor": 1.3, "growth_axis": "width", "deterministic": False}
    assert fusion("train", "--base-model", "b", "--dataset", "d", "--set", "lr").exit_code == 2


def test_stop_resume_and_checkpoints(fusion, server):
    server.routes["POST /api/jobs/job-1/stop"] = [as_json(job_detail("running", stop_requested=True))]
    server.routes["POST /api/jobs/job-1/resume"] = [as_json(job_detail("queued") | {"id": "job-2"})]
    checkpoint = {"id": "c-1", "step": 40, "turn_end": False, "bytes": 1234, "status": "ok"}
    server.routes["GET /api/jobs/job-1/checkpoints"] = [as_json([checkpoint | {"created_at": "2026-06-04T02:30:00Z"}])]
    assert "its worker saves a checkpoint" in fusion("stop", "job-1").output
    resumed = fusion("resume", "job-1", "--checkpoint", "c-1", "--no-watch")
    assert resumed.stdout == "job-2\n"
    assert json.loads(server.asked[-1].body) == {"checkpoint_id": "c-1"}
    assert "c-1" in fusion("checkpoints", "job-1").stdout


def test_a_machine_and_a_priority_can_be_asked_for(fusion, server):
    server.routes["POST /api/jobs"] = [as_json(job())]
    asked = ("train", "--base-model", "b", "--dataset", "d", "--no-watch")
    assert fusion(*asked, "--priority", "high", "--gpu-class", "h100", "--gpu-count", 8).exit_code == 0
    sent = json.loads(server.asked[-1].body)
    assert (sent["priority"], sent["compute"]) == ("high", {"gpu_class": "h100", "gpu_count": 8})
    assert fusion(*asked).exit_code == 0
    assert not {"priority", "compute"} & json.loads(server.asked[-1].body).keys(), "the server's defaults are its own"
    half = fusion(*asked, "--gpu-class", "h100")
    assert half.exit_code == 2
    assert "--gpu-count" in half.stderr


def test_the_account_its_use_and_its_bills(fusion, server):
    spend = {"limit_usd": 500, "warning_usd": None, "billed_usd": 12.5, "reserved_usd": 2, "warning": True}
    account = {"id": "a-1", "name": "Acme", "max_running_jobs": 4, "spend": spend}
    server.routes["GET /api/account"] = server.routes["PATCH /api/account"] = [as_json(account)]
    shown = fusion("account")
    assert all(text in shown.stdout for text in ("Acme", "$12.500000", "$500.000000"))
    assert "reached the warning" in shown.stderr
    assert fusion("account", "--spend-limit", 500, "--spend-warning", "none").exit_code == 0
    assert json.loads(server.asked[-1].body) == {"spend_limit_usd": 500, "spend_warning_usd": None}
    assert fusion("account", "--spend-limit", "much").exit_code == 2
    day = {"date": "2026-06-04", "gpu_minutes": 24.5, "tokens": 3_072_000, "cost_usd": 30.716, "jobs": 1}
    totals = {"total_gpu_minutes": 24.5, "total_tokens": 3_072_000, "total_cost_usd": 30.716, "total_jobs": 1}
    server.routes["GET /api/usage"] = [as_json({"period_days": 7, "unit": "day", "buckets": [day]} | totals)]
    assert all(text in fusion("usage", "--days", 7).stdout for text in ("2026-06-04", "3,072,000", "24.50", "total"))
    line = {"id": "l-1", "job_id": "job-1", "type": "train", "status": "completed", "total_usd": 2.0, "line_items": []}
    line |= {"tokens": 9, "gpu_minutes": 1.0, "price_version": 1, "created_at": "2026-06-04T02:30:00Z"}
    server.routes["GET /api/ledger"] = [as_json([line])]
    assert "$2.000000" in fusion("ledger", "--job", "job-1").stdout
    assert server.asked[-1].path == "/api/ledger?job_id=job-1&limit=100"


def test_keys_are_made_listed_and_revoked(fusion, server):
    key = {"id": "k-1", "prefix": "fusion_live_ab", "scopes": ["read", "train"]}
    server.routes["POST /api/keys"] = [as_json(key | {"secret": "fusion_live_abcd"}, 201)]
    assert fusion("keys", "create", "ci", "--scope", "read", "--scope", "train").stdout == "k-1\nfusion_live_abcd\n"
    assert json.loads(server.asked[-1].body) == {"name": "ci", "scopes": ["read", "train"]}
    times = {"last_used_at": None, "created_at": "2026-06-04T02:30:00Z", "revoked": True}
    server.routes["GET /api/keys"] = [as_json([key | times | {"name": "ci"}])]
    assert "revoked" in fusion("keys", "list").stdout
    server.routes["DELETE /api/keys/k-1"] = [Answer(204)]
    assert fusion("keys", "revoke", "k-1").exit_code == 0


def test_a_models_lineage_a_datasets_rows_and_what_suits_both(fusion, server):
    made = {"params": 9, "status": "ready", "created_at": "2026-06-04T02:30:00Z", "dataset_id": "d", "version": "v1"}
    child = {"model_id": "m-2", "name": "two", "job_id": "j-2", "job_type": "finetune", "dataset": "notes v1"}
    root = {"model_id": "m-1", "name": "one", "job_id": "j-1", "job_type": "train", "dataset": None}
    above = {"parent_model_id": "m-1", "base_model_id": None, "base_model": None}
    catalog = {"parent_model_id": None, "base_model_id": "b-1", "base_model": "llama"}
    line = [made | child | above, made | root | catalog | {"status": "deleted"}]
    server.routes["GET /api/models/m-2/lineage"] = [as_json(line)]
    shown = fusion("lineage", "m-2").stdout
    assert all(text in shown for text in ("finetune j-2", "notes v1", "one v1 (deleted)", "llama"))
    rows = {"dataset_id": "d", "rows": [{"text": "ä [b]"}], "truncated": False}
    server.routes["GET /api/datasets/d/preview"] = [as_json(rows)]
    assert fusion("preview", "d", "--rows", 1).stdout == '{"text":"ä [b]"}\n'
    reason = {"setting": "turns", "value": 2, "reason": "the biggest jump"}
    found = {"hyperparams": {"turns": 2}, "reasons": [reason], "warnings": ["More data helps."], "dataset_tokens": 9}
    found |= {"params_before": 10, "params_after": 13}
    estimate = {"total_usd": 2.0, "unit": "1M-tokens", "qty": 1, "line_items": []}
    server.routes["POST /api/training/recommend"] = [as_json(found | {"estimate": estimate})]
    shown = fusion("recommend", "--base-model", "b", "--dataset", "d")
    assert "the biggest jump" in shown.stdout
    assert "warning: More data helps." in shown.stderr


def test_help_says_what_each_command_and_each_option_does(fusion):
    """No command and no option is without a word; typer shows the docstrings."""
    commands = [command for group in _groups() for command in group.registered_commands]
    assert len(commands) > 30
    for command in commands:
        assert command.callback is not None
        assert command.callback.__doc__, f"{command.callback.__name__} does not say what it does"
    page = (Path(__file__).parents[3] / "docs/client.md").read_text()
    named = [(command.name or command.callback.__name__).replace("_", "-") for command in commands]
    assert [name for name in named if not re.search(rf"`(fusion (keys )?)?{name}`", page)] == []
    for name in ("account", "usage", "ledger", "keys", "lineage", "recommend", "preview", "webhooks"):
        assert name in fusion("--help").stdout


def _groups():
    groups = [app]
    for group in groups:
        groups += [inner.typer_instance for inner in group.registered_groups]
    return groups
