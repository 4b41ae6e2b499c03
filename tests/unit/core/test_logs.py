"""Logs: one JSON object a line with the promised keys, from our code and from libraries alike."""

import json
import subprocess
import sys

import pytest

SCRIPT = """
import logging, sys, warnings
import structlog
from fusion_core import logs

logs.configure("api", sys.argv[1])
log = structlog.get_logger()
structlog.contextvars.bind_contextvars(request_id="r-1", account_id="a-1", job_id="j-1", epoch=3)
log.info("started", port=8000)
log.debug("never seen")
logging.getLogger("asyncio").warning("slow %s", "callback")
logging.getLogger("asyncio").info("never seen")

def divide(password):
    headers = {"authorization": password}
    return 1 / 0

try:
    divide("hush" * 2)
except ZeroDivisionError as error:
    log.error("broken", exc_info=error)
    logging.getLogger("asyncio").error("broken too", exc_info=error)
print("stdout stays free")
"""


def run(log_format: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", SCRIPT, log_format]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)


@pytest.mark.parametrize("log_format", ["json", "auto"])
def test_every_line_is_json_with_the_promised_keys(log_format: str) -> None:
    done = run(log_format)
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert [line["event"] for line in lines] == ["started", "slow callback", "broken", "broken too"]
    assert [line["level"] for line in lines] == ["info", "warning", "error", "error"]
    for line in lines:
        assert line["service"] == "api"
        assert line["timestamp"].endswith("Z")
        bound = {name: line[name] for name in ("request_id", "account_id", "job_id", "epoch")}
        assert bound == {"request_id": "r-1", "account_id": "a-1", "job_id": "j-1", "epoch": 3}
    assert lines[0]["port"] == 8000
    assert [line["exception"][0]["exc_type"] for line in lines[2:]] == ["ZeroDivisionError"] * 2
    assert done.stdout == "stdout stays free\n"


def test_pretty_is_for_people() -> None:
    first = run("pretty").stderr.splitlines()[0]
    assert "started" in first
    assert not first.startswith("{")


@pytest.mark.parametrize("log_format", ["json", "pretty"])
def test_a_traceback_shows_where_and_no_values(log_format: str) -> None:
    """Local variables hold API keys and the settings with their passwords."""
    done = run(log_format)
    assert "ZeroDivisionError" in done.stderr
    assert "divide" in done.stderr
    assert "hushhush" not in done.stderr
