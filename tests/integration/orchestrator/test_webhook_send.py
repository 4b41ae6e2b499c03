"""One attempt over real sockets: where it connects, what it sends, what it makes of answers, what it never does."""

import asyncio
import socket
import ssl
import subprocess
import threading
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID, uuid4

import pytest
from aiohttp import web
from fusion_core.db.webhooks import Delivery
from fusion_core.webhook_targets import TargetPolicy
from fusion_core.webhooks import Message, endpoint_secret, shown_secret
from fusion_orchestrator.webhooks import send, target
from fusion_orchestrator.webhooks.send import Sender

from .webhook_receiver import Receiver

KEY = "test-key-" * 4
LOCAL = TargetPolicy.of(allow_http=True, allow_private="127.0.0.1")
ENDPOINT = UUID(int=7)


def delivery(url: str, *, attempts: int = 1, versions: tuple[int, ...] = (1,), kind: str = "job.completed") -> Delivery:
    return Delivery(
        id=uuid4(),
        endpoint_id=ENDPOINT,
        epoch=1,
        attempts=attempts,
        message_id="job:7",
        message=Message(kind, datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC), {"seq": 7}),
        url=url,
        secret_versions=versions,
    )


class Names:
    """A DNS whose answers change from one look-up to the next."""

    def __init__(self, *answers: list[str]) -> None:
        self.answers = list(answers)
        self.asked: list[str] = []

    async def __call__(self, host: str, _port: int) -> list[str]:
        self.asked.append(host)
        return self.answers.pop(0)


async def test_what_is_sent(receiver: Receiver) -> None:
    answer = await Sender(KEY, LOCAL).send(delivery(receiver.url, versions=(2, 1)))
    assert (answer.outcome, answer.status, answer.snippet, answer.error) == ("delivered", 200, "thanks", None)
    (got,) = receiver.received
    assert got.message == {"type": "job.completed", "timestamp": "2026-01-02T03:04:05Z", "data": {"seq": 7}}
    assert got.headers["content-type"] == "application/json"
    assert got.headers["user-agent"].startswith("Fusion-Webhooks/")
    assert got.id == "job:7"
    assert len(got.headers["webhook-signature"].split()) == 2
    for version in (1, 2):
        assert got.verified(shown_secret(endpoint_secret(KEY, ENDPOINT, version))) == got.message


@pytest.mark.parametrize("status", [300, 301, 302, 307, 308, 400, 401, 404, 429, 500, 503])
async def test_every_answer_but_success_is_tried_again(receiver: Receiver, status: int) -> None:
    receiver.answers = [status]
    answer = await Sender(KEY, LOCAL).send(delivery(receiver.url))
    assert (answer.outcome, answer.status) == ("retry", status)
    assert 4 <= (answer.retry_s or 0) <= 6
    assert f"answered {status}" in (answer.error or "")


async def test_a_redirect_is_not_followed(receiver: Receiver) -> None:
    async def elsewhere(_request: web.Request) -> web.Response:
        return web.Response(status=307, headers={"Location": receiver.url + "/private"})

    receiver.answers = [elsewhere]
    answer = await Sender(KEY, LOCAL).send(delivery(receiver.url))
    assert answer.outcome == "retry"
    assert "redirects are not followed" in (answer.error or "")
    assert len(receiver.received) == 1


async def test_gone_is_gone_and_the_last_attempt_is_the_last(receiver: Receiver) -> None:
    receiver.answers = [410, 500, 500]
    sender = Sender(KEY, LOCAL)
    assert (await sender.send(delivery(receiver.url))).outcome == "gone"
    assert (await sender.send(delivery(receiver.url, attempts=10))).outcome == "failed"
    assert (await sender.send(delivery(receiver.url, kind="webhook.test"))).outcome == "failed"


@pytest.mark.parametrize("status", [429, 503, 500])
@pytest.mark.parametrize("form", ["seconds", "date"])
async def test_retry_after_is_honoured_where_it_means_something(receiver: Receiver, status: int, form: str) -> None:
    later = datetime.now(UTC) + timedelta(seconds=900)

    async def busy(_request: web.Request) -> web.Response:
        value = "900" if form == "seconds" else format_datetime(later, usegmt=True)
        return web.Response(status=status, headers={"Retry-After": value})

    receiver.answers = [busy]
    retry_s = (await Sender(KEY, LOCAL).send(delivery(receiver.url))).retry_s or 0
    assert (890 <= retry_s <= 901) == (status != 500)


async def test_an_endless_answer_is_kept_up_to_a_limit(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    async def endless(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(status=200)
        await response.prepare(request)
        try:
            while True:
                await response.write(b"x\0\xff" * 4096)
        except ConnectionError:
            return response

    receiver.answers = [endless]
    answer = await asyncio.wait_for(Sender(KEY, LOCAL).send(delivery(receiver.url)), 2)
    assert answer.outcome == "delivered"
    assert len(answer.snippet or "") == 4096
    assert "\0" not in (answer.snippet or "")

    async def stalls(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(status=200)
        await response.prepare(request)
        await response.write(b"begun")
        await asyncio.sleep(5)
        return response

    monkeypatch.setattr(send, "_BODY_DEADLINE_S", 0.2)
    receiver.answers = [stalls]
    answer = await asyncio.wait_for(Sender(KEY, LOCAL).send(delivery(receiver.url)), 2)
    assert (answer.outcome, answer.snippet) == ("delivered", "begun")


async def test_a_receiver_that_says_nothing_runs_into_the_deadline(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def silent(_request: web.Request) -> web.Response:
        await asyncio.sleep(5)
        return web.Response()

    monkeypatch.setattr(send, "DEADLINE_S", 0.3)
    receiver.answers = [silent]
    answer = await asyncio.wait_for(Sender(KEY, LOCAL).send(delivery(receiver.url)), 2)
    assert answer.outcome == "retry"
    assert "no complete answer" in (answer.error or "")


async def test_a_proxy_in_the_environment_is_not_used(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert (await Sender(KEY, LOCAL).send(delivery(receiver.url))).outcome == "delivered"


async def test_nobody_listens_and_no_such_name(receiver: Receiver) -> None:
    answer = await Sender(KEY, LOCAL).send(delivery("http://127.0.0.1:9/"))
    assert answer.outcome == "retry"
    assert "refused" in (answer.error or "").lower() or "connect" in (answer.error or "").lower()
    answer = await Sender(KEY, LOCAL, look_up=Names([])).send(delivery(f"http://hooks.test:{receiver.port}/"))
    assert "has no address" in (answer.error or "")


# -- where it connects -----------------------------------------------------------------------------------------------


async def test_the_name_is_looked_up_once_and_the_connection_pinned(receiver: Receiver) -> None:
    """DNS rebinding: were the name looked up again to connect, it would lead elsewhere."""
    names = Names(["127.0.0.1"], ["127.0.0.2"])
    url = f"http://hooks.test:{receiver.port}/x"
    answer = await Sender(KEY, LOCAL, look_up=names).send(delivery(url))
    assert answer.outcome == "delivered"
    assert names.asked == ["hooks.test"]
    assert receiver.received[0].headers["host"] == f"hooks.test:{receiver.port}"
    answer = await Sender(KEY, LOCAL, look_up=names).send(delivery(url))
    assert "refused: 127.0.0.2 is not a public address" in (answer.error or "")
    assert len(receiver.received) == 1


async def test_name_servers_that_never_answer_hold_nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    silent, real = threading.Event(), socket.getaddrinfo

    def look_up(host: str, *arguments: Any, **options: Any) -> Any:
        if host == "silent.test":
            silent.wait(10)
        return real(host, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    waiting = [asyncio.create_task(target.look_up("silent.test", 443)) for _ in range(100)]
    async with asyncio.timeout(5):
        await asyncio.sleep(0.1)
        assert await target.look_up("127.0.0.1", 443) == ["127.0.0.1"]
        monkeypatch.setattr(target, "_FREE_LOOKUPS", threading.BoundedSemaphore(1))
        assert target._FREE_LOOKUPS.acquire(blocking=False)
        with pytest.raises(OSError, match="too many names"):
            await target.look_up("127.0.0.1", 443)
    for task in waiting:
        task.cancel()
    monkeypatch.undo()
    silent.set()


async def test_every_address_of_a_name_must_be_allowed(receiver: Receiver) -> None:
    names = Names(["127.0.0.1", "10.0.0.1"])
    answer = await Sender(KEY, LOCAL, look_up=names).send(delivery(f"http://hooks.test:{receiver.port}/x"))
    assert "10.0.0.1 is not a public address" in (answer.error or "")
    assert receiver.received == []


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "2130706433", "0x7f.1", "0177.0.0.1", "127.1", "[::ffff:127.0.0.1]", "[::1]"]
)
async def test_without_permission_nothing_local_is_reached(receiver: Receiver, host: str) -> None:
    strict = TargetPolicy.of(allow_http=True, allow_private="")
    answer = await Sender(KEY, strict).send(delivery(f"http://{host}:{receiver.port}/"))
    assert answer.outcome == "retry"
    assert (answer.error or "").startswith("refused: ")
    assert receiver.received == []


async def test_a_url_that_was_taken_under_another_policy_is_refused(receiver: Receiver) -> None:
    strict = TargetPolicy.of(allow_http=False, allow_private="127.0.0.1")
    answer = await Sender(KEY, strict).send(delivery(receiver.url))
    assert "must begin with https://" in (answer.error or "")


# -- TLS -------------------------------------------------------------------------------------------------------------


class LocalCa(NamedTuple):
    """A certificate authority, and a certificate that it signed for hooks.test."""

    root: Path
    certificate: Path
    key: Path


@pytest.fixture(scope="module")
def local_ca(tmp_path_factory: pytest.TempPathFactory) -> LocalCa:
    folder = tmp_path_factory.mktemp("tls")
    made = LocalCa(*(folder / name for name in ("root.pem", "certificate.pem", "key.pem")))
    root_key = folder / "root.key"
    openssl(made.root, root_key, "/CN=root", "basicConstraints=critical,CA:TRUE")
    signed_by_root = ("-CA", str(made.root), "-CAkey", str(root_key))
    openssl(made.certificate, made.key, "/CN=elsewhere.test", "subjectAltName=DNS:hooks.test", *signed_by_root)
    return made


def openssl(certificate: Path, key: Path, subject: str, extension: str, *options: str) -> None:
    """A new key and its certificate, good for two days."""
    argv = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", subject, *options]
    argv += ["-addext", extension, "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(argv, check=True, capture_output=True, timeout=60)


async def test_tls_is_verified_against_the_name_of_the_url(local_ca: LocalCa) -> None:
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(local_ca.certificate, local_ca.key)
    asked_for: list[str | None] = []
    server.sni_callback = lambda _socket, name, _context: asked_for.append(name)
    trusting = ssl.create_default_context(cafile=str(local_ca.root))
    policy = TargetPolicy.of(allow_http=False, allow_private="127.0.0.1")
    async with Receiver(server) as receiver:

        async def send_to(host: str, tls: ssl.SSLContext | None) -> str:
            names = Names(["127.0.0.1"])
            answer = await Sender(KEY, policy, tls=tls, look_up=names).send(
                delivery(f"https://{host}:{receiver.port}/")
            )
            return answer.error or answer.outcome

        assert await send_to("hooks.test", trusting) == "delivered"
        assert asked_for == ["hooks.test"]
        for stranger in ("other.test", "elsewhere.test", "127.0.0.1"):
            assert "certificate" in (await send_to(stranger, trusting)).lower()
        assert "certificate" in (await send_to("hooks.test", None)).lower()
        assert len(receiver.received) == 1
