"""Where webhooks may go: which URLs are taken, and which addresses may be connected to (OWASP: SSRF prevention).

A customer chooses the URL and our network makes the request, so every address is checked at every delivery: it must be
global, and so must every IPv4 address that it carries inside.
"""

import ipaddress
import re
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Self
from urllib.parse import SplitResult, urlsplit

import msgspec

MAX_URL_LENGTH = 2048
_UNPRIVILEGED_PORT = 1024
_DEFAULT_PORTS = {"https": 443, "http": 80}
_LABEL = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)", re.IGNORECASE)

# Inside what `is_global` lets through: some of it by mistake before Python 3.12.4, some of it only here and there.
_REFUSED = tuple(
    ipaddress.ip_network(network)
    for network in (
        "168.63.129.16/32",  # Azure's host agent
        "192.0.0.0/24",  # IETF protocol assignments (RFC 6890)
        "192.88.99.0/24",  # 6to4 relays (RFC 7526)
        "2001::/23",  # IETF protocol assignments, Teredo and ORCHID among them (RFC 2928)
        "2001:db8::/32",  # documentation (RFC 3849)
        "3fff::/20",  # documentation (RFC 9637)
    )
)
_GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")  # RFC 4291: what IPv6 has handed out so far
_NAT64 = ipaddress.ip_network("64:ff9b::/96")  # RFC 6052
_ISATAP = (0x00005EFE, 0x02005EFE)  # RFC 5214: the interface identifier before an embedded IPv4 address


class RefusedTargetError(Exception):
    """The URL or the address is not one that webhooks go to; the message says why."""


class TargetPolicy(msgspec.Struct, frozen=True):
    """What the operator allows beyond https to global addresses."""

    allow_http: bool = False
    hosts: frozenset[str] = frozenset()
    networks: tuple[IPv4Network | IPv6Network, ...] = ()

    @classmethod
    def of(cls, *, allow_http: bool, allow_private: str) -> Self:
        """From the settings: host names, addresses and CIDR networks, separated by commas. Raises ValueError."""
        hosts, networks = set(), []
        for item in filter(None, (part.strip().lower() for part in allow_private.split(","))):
            try:
                networks.append(ipaddress.ip_network(item))
            except ValueError:
                if "/" in item or not _is_host_name(item):
                    raise ValueError(f"FUSION_WEBHOOK_ALLOW_PRIVATE: {item!r} is no host, address or network") from None
                hosts.add(item)
        return cls(allow_http, frozenset(hosts), tuple(networks))

    def check_url(self, url: str) -> None:
        """What can be said of a URL without asking the DNS. Raises RefusedTargetError."""
        parts = _split(url)
        host = parts.hostname or ""
        if parts.scheme not in ("https", "http") or (parts.scheme == "http" and not self.allow_http):
            raise RefusedTargetError("must begin with https://" + (" or http://" if self.allow_http else ""))
        if parts.username is not None or parts.password is not None:
            raise RefusedTargetError("must not contain a user name or password")
        if "#" in url:
            raise RefusedTargetError("must not have a fragment")
        literal = _literal(host)
        if literal is None and not _is_host_name(host):
            raise RefusedTargetError("needs a full host name or an IP address in its usual form")
        if literal is not None:
            self.check_address(host, literal)
        self._check_port(host, literal, parts)

    def check_address(self, host: str, address: IPv4Address | IPv6Address) -> None:
        """May `host` be reached at this address? Raises RefusedTargetError."""
        if host.lower() in self.hosts or any(address in network for network in self.networks):
            return
        for one in _with_embedded(address):
            if not _is_global(one):
                raise RefusedTargetError(f"{address} is not a public address")

    def _check_port(self, host: str, literal: IPv4Address | IPv6Address | None, parts: SplitResult) -> None:
        try:
            port = parts.port or _DEFAULT_PORTS[parts.scheme]
        except ValueError as broken:
            raise RefusedTargetError("has a port that is no number from 1 to 65535") from broken
        allowed = host.lower() in self.hosts or (
            literal is not None and any(literal in network for network in self.networks)
        )
        if port not in _DEFAULT_PORTS.values() and port < _UNPRIVILEGED_PORT and not allowed:
            raise RefusedTargetError("needs port 443, 80, or one from 1024 on")


def _split(url: str) -> SplitResult:
    if len(url) > MAX_URL_LENGTH:
        raise RefusedTargetError(f"is longer than {MAX_URL_LENGTH} characters")
    if not url.isascii() or any(character <= " " or character in '\\"<>^`{|}\x7f' for character in url):
        raise RefusedTargetError("has characters that must be percent-encoded, or a host that must be punycode")
    try:
        return urlsplit(url)
    except ValueError as broken:
        raise RefusedTargetError(f"cannot be read: {broken}") from broken


def _is_host_name(host: str) -> bool:
    """Dotted labels or one word; the last label is no number, since 2130706433, 0x7f.1 and 127.1 are addresses."""
    labels = host.removesuffix(".").split(".")
    last_is_number = re.fullmatch(r"\d+|0x[0-9a-f]*", labels[-1], re.IGNORECASE) is not None
    return len(host) <= 253 and not last_is_number and all(_LABEL.fullmatch(label) for label in labels)


def _literal(host: str) -> IPv4Address | IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _is_global(address: IPv4Address | IPv6Address) -> bool:
    if address.is_multicast or address.is_unspecified or any(address in network for network in _REFUSED):
        return False
    if isinstance(address, IPv6Address):
        return address.scope_id is None and address.is_global and address in _GLOBAL_UNICAST
    return address.is_global and not address.is_reserved


def _with_embedded(address: IPv4Address | IPv6Address) -> Iterator[IPv4Address | IPv6Address]:
    """The addresses that a packet to this one may reach: itself, or what mapping and tunnels make of it."""
    if isinstance(address, IPv4Address):
        yield address
        return
    if address.ipv4_mapped is not None:
        yield address.ipv4_mapped
        return
    low = IPv4Address(int(address) & 0xFFFFFFFF)
    if address in _NAT64:
        yield low
        return
    yield address
    if address.sixtofour is not None:
        yield address.sixtofour
    if address.teredo is not None:
        yield from address.teredo
    if (int(address) >> 32) & 0xFFFFFFFF in _ISATAP:
        yield low
