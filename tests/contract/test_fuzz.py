"""schemathesis over the whole surface of a real server: no unexpected 5xx, no undocumented answer.

`FUSION_FUZZ_EXAMPLES=200 pytest tests/contract/test_fuzz.py` looks longer than the test suite does.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fusion_core.storage import Storage

from tests.integration.api.api_process import Server

EXAMPLES = os.environ.get("FUSION_FUZZ_EXAMPLES", "8")
# Not among them: positive_data_acceptance. Rules between fields (a model named once, a part that exists) are not said
# by a schema; every such refusal is a 422 with a pointer.
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
    "ignored_auth",
    "unsupported_method",
    "use_after_free",
)


@pytest.fixture
def server(storage: Storage, service_environment: dict[str, str], tmp_path: Path) -> Iterator[Server]:
    """Without a rate limit in its way."""
    more = {"FUSION_WEBHOOK_KEY": "test-key-" * 4, "FUSION_REQUESTS_PER_MINUTE": "1000000"}
    server = Server(service_environment | more, tmp_path / "api.log")
    try:
        server.wait_ready()
        yield server
    finally:
        server.process.kill()
        server.process.wait(10)


@pytest.mark.timeout(1200)
async def test_the_whole_surface(server: Server, customer: Any, base_model_id: str, tmp_path: Path) -> None:
    await customer.model(base_model_id)
    command = [
        str(Path(sys.executable).parent / "schemathesis"), "run", f"{server.url}/api/openapi.json",
        "--header", f"Authorization: Bearer {customer.secret}", "--checks", ",".join(CHECKS),
        "--max-examples", EXAMPLES, "--phases", "examples,coverage,fuzzing", "--seed", "20261121",
        "--generation-deterministic", "--workers", "2", "--request-timeout", "30", "--no-color",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=1100, check=False)
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-2_000:]
    broken = [line for line in server.log.read_text().splitlines() if "request_failed" in line]
    assert broken == []
