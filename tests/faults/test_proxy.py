"""The proxy does to real sockets what it says."""

import http.client
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from tests.faults.proxy import HOST, PASS, Fault, Kind, Proxy

SILENCE_S = 0.3


class Echo:
    """A server that answers every byte with itself; `closed` counts the connections that have ended."""

    def __init__(self) -> None:
        self._listener = socket.create_server((HOST, 0))
        self.port = self._listener.getsockname()[1]
        self.closed = threading.Semaphore(0)
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._echo, args=(connection,), daemon=True).start()

    def _echo(self, connection: socket.socket) -> None:
        with connection:
            try:
                while content := connection.recv(65536):
                    connection.sendall(content)
            except OSError:
                pass
            self.closed.release()

    def close(self) -> None:
        self._listener.close()


@pytest.fixture
def echo() -> Iterator[Echo]:
    echo = Echo()
    yield echo
    echo.close()


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    with Proxy() as proxy:
        yield proxy


def dial(port: int) -> socket.socket:
    return socket.create_connection((HOST, port), timeout=10)


def exchange(client: socket.socket, content: bytes = b"hello") -> bytes:
    client.sendall(content)
    return client.recv(65536)


def falls_silent(client: socket.socket) -> bool:
    client.settimeout(SILENCE_S)
    try:
        return exchange(client) == b"never"
    except TimeoutError:
        return True
    finally:
        client.settimeout(10)


def test_it_passes(proxy: Proxy, echo: Echo) -> None:
    with dial(proxy.link("a", echo.port)) as client:
        assert exchange(client) == b"hello"
    assert echo.closed.acquire(timeout=10), "the server hears that the client has gone"


def test_a_cut_resets_open_and_new_connections_until_it_is_healed(proxy: Proxy, echo: Echo) -> None:
    port = proxy.link("a", echo.port)
    with dial(port) as client:
        assert exchange(client) == b"hello"
        proxy.set("a", Fault(Kind.CUT))
        with pytest.raises(ConnectionResetError):
            client.recv(1)
    with pytest.raises(ConnectionResetError), dial(port) as client:
        client.recv(1)
    proxy.heal()
    with dial(port) as client:
        assert exchange(client) == b"hello"


def test_links_fail_one_by_one(proxy: Proxy, echo: Echo) -> None:
    ports = [proxy.link(name, echo.port) for name in "ab"]
    proxy.set("a", Fault(Kind.CUT))
    with dial(ports[1]) as client:
        assert exchange(client) == b"hello"


def test_delays_and_slowness_take_time_and_lose_nothing(proxy: Proxy, echo: Echo) -> None:
    with dial(proxy.link("a", echo.port)) as client:
        for fault, least_s in ((Fault(Kind.DELAY, 0.1, 0.05), 0.2), (Fault(Kind.SLOW, bytes_per_s=50), 0.2)):
            proxy.set("a", fault)
            before = time.monotonic()
            assert exchange(client) == b"hello"
            assert time.monotonic() - before >= least_s


def test_half_open_is_silent_for_ever_and_new_connections_pass_once_healed(proxy: Proxy, echo: Echo) -> None:
    port = proxy.link("a", echo.port)
    with dial(port) as before:
        assert exchange(before) == b"hello"
        proxy.set("a", Fault(Kind.HALF_OPEN))
        assert falls_silent(before)
        with dial(port) as during:
            assert falls_silent(during)
            proxy.set("a", PASS)
            assert falls_silent(during)
        assert falls_silent(before)
        with dial(port) as after:
            assert exchange(after) == b"hello"
    assert echo.closed.acquire(timeout=10), "the one connection that passed has ended"
    assert not echo.closed.acquire(timeout=SILENCE_S), "the server hears nothing of the ends that fell silent"


@pytest.mark.parametrize(
    ("kind", "status", "word"), [(Kind.HTTP_503, 503, b"SlowDown"), (Kind.HTTP_500, 500, b"Internal")]
)
def test_http_errors_answer_in_the_servers_place(
    proxy: Proxy, echo: Echo, kind: Kind, status: int, word: bytes
) -> None:
    port = proxy.link("s3", echo.port)
    proxy.set("s3", Fault(kind))
    client = http.client.HTTPConnection(HOST, port, timeout=10)
    client.request("PUT", "/bucket/key", body=b"x" * 200_000)
    answer = client.getresponse()
    assert (answer.status, word in answer.read()) == (status, True)
    client.close()


def test_a_hang_sends_a_head_and_no_body_and_ends_when_it_is_healed(proxy: Proxy, echo: Echo) -> None:
    port = proxy.link("s3", echo.port)
    proxy.set("s3", Fault(Kind.HTTP_HANG))
    client = http.client.HTTPConnection(HOST, port, timeout=SILENCE_S)
    client.request("GET", "/bucket/key")
    answer = client.getresponse()
    assert answer.status == 200
    with pytest.raises(TimeoutError):
        answer.read(1)
    proxy.heal()
    client.close()
    with dial(port) as after:
        assert exchange(after) == b"hello"


def test_an_unknown_link_is_refused(proxy: Proxy) -> None:
    with pytest.raises(KeyError):
        proxy.set("nobody", PASS)
