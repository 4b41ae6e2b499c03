"""A real HTTP server on a loopback port, scripted by each test, that keeps what it was asked."""

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from fusion_client import Fusion, Retries


@dataclass
class Asked:
    """One request."""

    method: str
    path: str  # with the query
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Answer:
    """One response. A `body` shorter than `length` breaks the connection in its middle."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    length: int | None = None


def as_json(value: object, status: int = 200, **headers: str) -> Answer:
    return Answer(status, json.dumps(value).encode(), {"Content-Type": "application/json", **headers})


def problem(status: int, code: str, detail: str = "no", errors: list[dict[str, str]] | None = None, **headers: str):
    return as_json({"code": code, "detail": detail, "errors": errors or []}, status, **headers)


Handler = Callable[[Asked], Answer]


class Server:
    """`routes` maps "METHOD /path" to a handler, or to a list of answers given in turn, the last one for ever."""

    def __init__(self) -> None:
        self.routes: dict[str, Handler | list[Answer]] = {}
        self.asked: list[Asked] = []
        self._lock = threading.Lock()
        server = self

        class RequestHandler(BaseHTTPRequestHandler):
            def handle_any(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                asked = Asked(self.command, self.path, {k.lower(): v for k, v in self.headers.items()}, body)
                server.send(self, server.answer(asked))

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = handle_any  # noqa: N815

            def log_message(self, *_: object) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), RequestHandler)
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()

    def close(self) -> None:
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()

    def answer(self, asked: Asked) -> Answer:
        with self._lock:
            self.asked.append(asked)
            script = self.routes.get(f"{asked.method} {asked.path.partition('?')[0]}")
            if isinstance(script, list):
                return script.pop(0) if len(script) > 1 else script[0]
        return script(asked) if script is not None else problem(404, "not_found", f"no route {asked.path}")

    @staticmethod
    def send(handler: BaseHTTPRequestHandler, answer: Answer) -> None:
        handler.send_response(answer.status)
        length = len(answer.body) if answer.length is None else answer.length
        for name, value in {"Content-Length": str(length), **answer.headers}.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(answer.body)


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


@pytest.fixture
def client(server: Server) -> Iterator[Fusion]:
    with Fusion(server.url, "fusion_live_test", retries=Retries(4, first_wait_s=0.01, longest_wait_s=0.05)) as client:
        yield client


def job(status: str = "queued", **changes: object) -> dict[str, object]:
    """A job as the API shows it."""
    return {
        "id": "job-1",
        "type": "train",
        "status": status,
        "retries": 0,
        "last_checkpoint_step": 0,
        "output_model_id": None,
        "created_at": "2026-06-04T02:30:00Z",
        "started_at": None,
        "finished_at": None,
    } | changes


def job_detail(status: str = "queued", **changes: object) -> dict[str, object]:
    """A job as the API shows it alone."""
    line = {"label": "training", "qty": 1280000, "unit": "1M-tokens", "rate": 45.0, "amount": 57.6}
    return (
        job(status)
        | {
            "phase": None,
            "progress": {"step": 0, "total_steps": 20, "percent": 0.0, "tokens": 0, "seconds_left": None},
            "base_model_id": "b",
            "dataset_id": "d",
            "hyperparams": {"turns": 1},
            "params_before": 3_000_000,
            "params_after": 4_500_000,
            "estimate": {"total_usd": 57.6, "unit": "1M-tokens", "qty": 1.28, "line_items": [line]},
            "cancel_requested": False,
            "error": None,
        }
        | changes
    )


def dataset(status: str, **changes: object) -> dict[str, object]:
    """A dataset as the API shows it."""
    return {
        "id": "d-1",
        "name": "train",
        "version": "v1",
        "shard_count": 0,
        "bytes": 0,
        "rows": 0,
        "status": status,
        "created_at": "2026-06-04T02:30:00Z",
        "error": None,
    } | changes


def sse(seq: int, kind: str, **data: object) -> bytes:
    """One server-sent event."""
    return f"id: {seq}\nevent: {kind}\ndata: {json.dumps(data, ensure_ascii=False)}\n\n".encode()
