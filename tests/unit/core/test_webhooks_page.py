"""docs/webhooks.md: its examples run, its events are those of the code, its schedule is the one that is kept."""

import json
import re
import time
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from fusion_core.webhooks import (
    ALIASES,
    EVENT_TYPES,
    MAX_ATTEMPTS,
    RETRY_DELAYS_S,
    SECRET_OVERLAP_S,
    TEST_EVENT,
    endpoint_secret,
    shown_secret,
    signed_headers,
)
from standardwebhooks import Webhook, WebhookVerificationError

PAGE = (Path(__file__).parents[3] / "docs/webhooks.md").read_text()
OWN_WORDS, LIBRARY = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
NEW, OLD = (endpoint_secret("k" * 32, uuid4(), version) for version in (2, 1))


def message(timestamp_s: float) -> tuple[dict[str, str], bytes]:
    body = json.dumps({"type": "job.completed"}).encode()
    return signed_headers("job:7", int(timestamp_s), body, [NEW, OLD]), body


def run(example: str, **names: Any) -> dict[str, Any]:
    exec(compile(example, "docs/webhooks.md", "exec"), names)  # noqa: S102 - the page is ours
    return names


def test_the_example_without_a_library_takes_what_is_right_and_nothing_else() -> None:
    verify = run(OWN_WORDS)["verify"]
    headers, body = message(time.time())
    for secret in (NEW, OLD):
        verify(shown_secret(secret), headers, body)
    stranger = shown_secret(endpoint_secret("k" * 32, uuid4(), 1))
    forged = [
        (stranger, headers, body),
        (shown_secret(NEW), headers, body + b" "),
        (shown_secret(NEW), headers | {"webhook-id": "job:8"}, body),
        (shown_secret(NEW), headers | {"webhook-timestamp": str(int(time.time()) + 1)}, body),
        (shown_secret(NEW), *message(time.time() - 301)),
        (shown_secret(NEW), *message(time.time() + 302)),
    ]
    for arguments in forged:
        with pytest.raises(ValueError, match=r"old|wrong"):
            verify(*arguments)


def test_the_example_with_the_library_does_the_same() -> None:
    headers, body = message(time.time())
    names = {"headers": headers, "body": body}
    assert run(LIBRARY, secret=shown_secret(NEW), **names)["message"] == {"type": "job.completed"}
    with pytest.raises(WebhookVerificationError):
        run(LIBRARY, secret=shown_secret(endpoint_secret("k" * 32, uuid4(), 1)), **names)
    assert Webhook(shown_secret(OLD)).verify(body, headers) == {"type": "job.completed"}


def test_the_page_has_every_event_and_alias_and_no_other() -> None:
    assert re.findall(r"^\| `([a-z]+\.[a-z]+)` \|", PAGE, re.MULTILINE) == [*EVENT_TYPES, TEST_EVENT]
    assert set(re.findall(r"`(training\.\w+)`", PAGE)) == set(ALIASES)


def test_the_page_has_the_schedule() -> None:
    assert MAX_ATTEMPTS == 10
    assert "tried ten times over about 75 hours" in PAGE
    assert [delay // 3600 for delay in RETRY_DELAYS_S[3:]] == [2, 5, 10, 14, 20, 24]
    assert RETRY_DELAYS_S[:3] == (5, 5 * 60, 30 * 60)
    assert "about 5 seconds, 5 and 30 minutes, 2, 5, 10, 14, 20 and 24\nhours" in PAGE
    assert "for 24 hours" in PAGE
    assert SECRET_OVERLAP_S == 24 * 3600
