"""Which URLs and addresses webhooks go to."""

import ipaddress

import pytest
from fusion_core.webhook_targets import RefusedTargetError, TargetPolicy

STRICT = TargetPolicy()

PRIVATE = {
    "this host, loopback": "0.0.0.0 0.1.2.3 127.0.0.1 127.255.255.254 :: ::1",
    "private": "10.0.0.1 100.64.0.1 172.16.0.1 172.31.255.255 192.168.1.1 fc00::1 fd00:ec2::254 fec0::1",
    "link-local": "169.254.169.254 fe80::1 fe80::1%eth0 2606:4700::1%eth0",
    "protocols": "192.0.0.1 192.0.0.9 192.0.0.170 192.88.99.1 198.18.0.1 100::1 2001::1 2001:2::1 2001:20::1 5f00::1",
    "documentation": "192.0.2.1 198.51.100.1 203.0.113.1 2001:db8::1 2001:10::1 3fff::1",
    "multicast, reserved": "224.0.0.1 239.255.255.250 240.0.0.1 255.255.255.255 ff02::1 ff0e::1 4000::1",
    "the cloud's own": "168.63.129.16",
    "mapped, compatible": "::ffff:127.0.0.1 ::ffff:10.0.0.1 ::ffff:169.254.169.254 ::127.0.0.1 ::8.8.8.8",
    "translated": "::ffff:0:127.0.0.1 64:ff9b::127.0.0.1 64:ff9b::a9fe:a9fe 64:ff9b::10.1.2.3 64:ff9b:1::8.8.8.8",
    "6to4": "2002:7f00:1:: 2002:a9fe:a9fe::1 2002:c0a8:101::1",
    "Teredo": "2001:0:4136:e378:8000:63bf:3fff:fdd2 2001:0:7f00:1::",
    "ISATAP": "2606:4700::5efe:127.0.0.1 2606:4700::200:5efe:10.0.0.1",
}
PUBLIC = {
    "plain": "1.1.1.1 8.8.8.8 172.32.0.1 100.128.0.1 192.0.1.1 2606:4700:4700::1111 2a00:1450:4001:829::200e",
    "embedded": "::ffff:8.8.8.8 64:ff9b::8.8.8.8 2002:808:808::1",
}


@pytest.mark.parametrize("address", " ".join(PRIVATE.values()).split())
def test_addresses_that_are_not_global_are_refused(address: str) -> None:
    with pytest.raises(RefusedTargetError, match="not a public address"):
        STRICT.check_address("example.com", ipaddress.ip_address(address))


@pytest.mark.parametrize("address", " ".join(PUBLIC.values()).split())
def test_global_addresses_are_taken(address: str) -> None:
    STRICT.check_address("example.com", ipaddress.ip_address(address))


@pytest.mark.parametrize(
    "url",
    [
        "https://example.com",
        "https://example.com/",
        "https://hooks.example.com:8443/fusion?key=1",
        "https://xn--bcher-kva.example/a%20b",
        "https://8.8.8.8/hook",
        "https://[2606:4700:4700::1111]/hook",
        "https://my_service.example.com/",
    ],
)
def test_urls_that_are_taken(url: str) -> None:
    STRICT.check_url(url)


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://example.com/", "https://"),
        ("ftp://example.com/", "https://"),
        ("file:///etc/passwd", "https://"),
        ("//example.com/", "https://"),
        ("example.com", "https://"),
        ("", "https://"),
        ("https://", "host name"),
        ("https:///path", "host name"),
        ("https://user@example.com/", "user name"),
        ("https://:secret@example.com/", "user name"),
        ("https://example.com@127.0.0.1/", "user name"),
        ("https://example.com/#part", "fragment"),
        ("https://example.com/a b", "percent-encoded"),
        ("https://example.com\\@127.0.0.1/", "percent-encoded"),
        ("https://exa\nmple.com/", "percent-encoded"),
        ("https://bücher.example/", "punycode"),
        ("https://\u2460\u2461\u2466.0.0.1/", "punycode"),
        ("https://example.com:0x50/", "port"),
        ("https://example.com:99999/", "port"),
        ("https://example.com:25/", "port"),
        ("https://example.com:22/", "port"),
        ("https://127.0.0.1/", "not a public"),
        ("https://[::1]/", "not a public"),
        ("https://[::ffff:127.0.0.1]/", "not a public"),
        ("https://[fe80::1%25eth0]/", "not a public"),
        ("https://[::1/", "cannot be read"),
        ("https://2130706433/", "usual form"),
        ("https://0x7f000001/", "usual form"),
        ("https://0x7f.1/", "usual form"),
        ("https://0177.0.0.1/", "usual form"),
        ("https://127.1/", "usual form"),
        ("https://127.0.0.1./", "usual form"),
        ("https://256.256.256.256/", "usual form"),
        ("https://-a.example.com/", "host name"),
        ("https://a..example.com/", "host name"),
        ("https://%6c%6fcalhost/", "host name"),
        ("https://example.com/" + "x" * 2048, "longer than 2048"),
    ],
)
def test_urls_that_are_refused_say_why(url: str, reason: str) -> None:
    with pytest.raises(RefusedTargetError, match=reason):
        STRICT.check_url(url)


def test_an_operator_allows_hosts_addresses_and_networks() -> None:
    policy = TargetPolicy.of(allow_http=True, allow_private=" 127.0.0.0/8, ::1,Hooks.Internal ,10.1.2.3")
    policy.check_url("http://127.0.0.1:80/")
    policy.check_url("http://hooks.internal:25/")
    for host, address in [
        ("a.example", "127.9.9.9"),
        ("a.example", "::1"),
        ("a", "10.1.2.3"),
        ("HOOKS.internal", "10.9.9.9"),
    ]:
        policy.check_address(host, ipaddress.ip_address(address))
    for host, address in [("a.example", "10.1.2.4"), ("hooks.internal.evil.example", "10.9.9.9")]:
        with pytest.raises(RefusedTargetError):
            policy.check_address(host, ipaddress.ip_address(address))


@pytest.mark.parametrize("value", ["10.0.0.1/8", "no host", "10.0.0.0/99", "a/b"])
def test_an_allow_list_with_a_fault_is_refused(value: str) -> None:
    with pytest.raises(ValueError, match="FUSION_WEBHOOK_ALLOW_PRIVATE"):
        TargetPolicy.of(allow_http=False, allow_private=value)
