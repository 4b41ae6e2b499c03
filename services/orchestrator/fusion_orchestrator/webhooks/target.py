"""One look-up of a receiver's addresses, each checked, and a connector that can reach nothing else.

Checking one look-up and connecting by another would let the DNS answer differently in between (DNS rebinding).
"""

import asyncio
import contextlib
import ipaddress
import socket
import ssl
import threading
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.client_proto import ResponseHandler
from fusion_core.webhook_targets import RefusedTargetError, TargetPolicy
from yarl import URL

LOOKUP_DEADLINE_S = 5.0
MAX_RECEIVED = 2**20  # of everything that a receiver sends, its head included
_MAX_ADDRESSES = 16
_FREE_LOOKUPS = threading.BoundedSemaphore(256)

LookUp = Callable[[str, int], Awaitable[Sequence[str]]]


async def look_up(host: str, port: int) -> list[str]:
    """What the system's resolver answers. Raises OSError.

    Each look-up has a thread of its own, which nobody waits for: a customer's name server that never answers would
    otherwise fill the loop's few threads, and hold the process when it ends.
    """
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[list[str]] = loop.create_future()

    def settle(addresses: list[str] | OSError) -> None:
        if answer.done():  # nobody waits any more
            return
        if isinstance(addresses, OSError):
            answer.set_exception(addresses)
        else:
            answer.set_result(addresses)

    def ask() -> None:
        try:
            addresses = _addresses_of(host, port)
        finally:
            _FREE_LOOKUPS.release()
        with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(settle, addresses)

    if not _FREE_LOOKUPS.acquire(blocking=False):
        raise OSError("too many names are being looked up")
    threading.Thread(target=ask, name=f"look up {host}", daemon=True).start()
    return await answer


def _addresses_of(host: str, port: int) -> list[str] | OSError:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
    except OSError as error:
        return error
    except UnicodeError as error:
        return OSError(f"{host} is no name: {error}")
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


async def checked_addresses(url: URL, policy: TargetPolicy, look_up: LookUp = look_up) -> list[str]:
    """The addresses behind a URL, if webhooks may go to every one of them.

    Raises RefusedTargetError, OSError where the name does not resolve, TimeoutError after LOOKUP_DEADLINE_S.
    """
    policy.check_url(str(url))
    host, port = url.raw_host or "", url.port or 0
    async with asyncio.timeout(LOOKUP_DEADLINE_S):
        addresses = list(await look_up(host, port))[:_MAX_ADDRESSES]
    if not addresses:
        raise OSError(f"{host} has no address")
    for address in addresses:
        policy.check_address(host, ipaddress.ip_address(address))
    return addresses


class _Pinned(AbstractResolver):
    """Answers every name with the addresses that were checked."""

    def __init__(self, addresses: Sequence[str]) -> None:
        self._addresses = addresses

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=socket.AF_INET6 if ":" in address else socket.AF_INET,
                proto=socket.IPPROTO_TCP,
                flags=socket.AI_NUMERICHOST,
            )
            for address in self._addresses
        ]

    async def close(self) -> None:
        """There is nothing to close."""


class _Bounded(ResponseHandler):
    """Drops a connection that has brought too much. aiohttp bounds lines, headers and what it buffers; not the empty
    lines, interim answers and chunk extensions that it skips, which would keep us busy until the deadline.
    """

    _left = MAX_RECEIVED

    def data_received(self, data: bytes) -> None:
        self._left -= len(data)
        if self._left >= 0:
            super().data_received(data)
        elif self.transport is not None:
            self.transport.abort()


def pinned_connector(addresses: Sequence[str], tls: ssl.SSLContext) -> aiohttp.TCPConnector:
    """Connects to these addresses and to no other, whatever it is asked for, with the URL's host as TLS server name;
    takes MAX_RECEIVED bytes at most.

    aiohttp takes an address in a URL as it stands, without a resolver: hence the check at the socket, too.
    """

    def open_socket(info: tuple[int, int, int, str, tuple[object, ...]]) -> socket.socket:
        family, kind, protocol, _, address = info
        if address[0] not in addresses:
            raise RefusedTargetError(f"{address[0]} was not checked")
        return socket.socket(family, kind, protocol)

    connector = aiohttp.TCPConnector(
        resolver=_Pinned(addresses),
        use_dns_cache=False,
        force_close=True,
        limit=1,
        ssl=tls,
        socket_factory=open_socket,
    )
    connector._factory = partial(_Bounded, asyncio.get_running_loop())  # type: ignore[assignment]  # its own base
    return connector
