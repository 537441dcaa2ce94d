"""Whose request it is, whatever stands in the headers."""

from collections.abc import Mapping
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.addresses import (
    MAX_ENTRIES,
    TrustedProxies,
    parse_networks,
    peer_address,
    plain_address,
)
from gateway.config import Config
from gateway.node import Node

PROXIES = TrustedProxies(parse_networks(("10.0.0.0/8", "192.0.2.1", "fd00::/8")))
PROXY, OTHER_PROXY, CLIENT = "10.0.0.1", "10.0.0.2", "203.0.113.9"


def origin(peer: str, **lines: str) -> str:
    """With headers ``forwarded`` and ``listed``, which is X-Forwarded-For."""
    headers: Mapping[bytes, bytes] = {
        {"forwarded": b"forwarded", "listed": b"x-forwarded-for"}[name]: value.encode("latin-1")
        for name, value in lines.items()
    }
    return PROXIES.origin(peer, headers.get)


def test_nobody_else_is_believed() -> None:
    for header in ("forwarded", "listed"):
        assert origin("198.51.100.7", **{header: "for=10.0.0.1"}) == "198.51.100.7"
        assert origin("", **{header: "1.2.3.4"}) == ""


def test_without_a_header_it_is_the_peer() -> None:
    assert origin(PROXY) == PROXY


@pytest.mark.parametrize(
    ("listed", "found"),
    [
        (CLIENT, CLIENT),
        (f"{CLIENT}:4711", CLIENT),
        (f" {CLIENT}\t", CLIENT),
        (f"1.1.1.1, {CLIENT}", CLIENT),
        (f"1.1.1.1,{CLIENT},{OTHER_PROXY}", CLIENT),
        (f"{CLIENT}, 10.0.0.3 ,192.0.2.1,fd00::1", CLIENT),
        ("2001:DB8::0:9", "2001:db8::9"),
        ("[2001:db8::9]", "2001:db8::9"),
        ("[2001:db8::9]:4711", "2001:db8::9"),
        (f"::ffff:{CLIENT}", CLIENT),
        ("::ffff:10.0.0.3", "10.0.0.3"),
        (f"{CLIENT}, ::ffff:10.0.0.3", CLIENT),
        (f"10.0.0.4, {OTHER_PROXY}", "10.0.0.4"),
        ("", PROXY),
        ("unknown", PROXY),
        ("rubbish", PROXY),
        (f"{CLIENT}, rubbish", PROXY),
        (f"{CLIENT}, rubbish, {OTHER_PROXY}", OTHER_PROXY),
        (f"{CLIENT},", PROXY),
        (f"{CLIENT}:", PROXY),
        (f"{CLIENT}:999999", PROXY),
        ("300.1.1.1", PROXY),
        ("01.1.1.1", PROXY),
        ("[203.0.113.9", PROXY),
        ("fe80::1%eth0", PROXY),
        ("2001:db8::9%\x1b[2J", PROXY),
        ("\xb2.1.1.1", PROXY),
        (f"for={CLIENT}", PROXY),
    ],
)
def test_x_forwarded_for_is_read_from_the_right(listed: str, found: str) -> None:
    assert origin(PROXY, listed=listed) == found


@pytest.mark.parametrize(
    ("forwarded", "found"),
    [
        (f"for={CLIENT}", CLIENT),
        (f"For={CLIENT};proto=https;by=10.0.0.1", CLIENT),
        (f'proto=https; FOR="{CLIENT}:4711" ; host="a b"', CLIENT),
        (f"for=1.1.1.1, for={CLIENT}, for={OTHER_PROXY}", CLIENT),
        ('for="[2001:db8:cafe::17]:4711"', "2001:db8:cafe::17"),
        ('for="[2001:db8:cafe::17]"', "2001:db8:cafe::17"),
        (f'for="[::ffff:{CLIENT}]:1"', CLIENT),
        (f'for="{CLIENT}:_port"', CLIENT),
        (f'for="\\{CLIENT}"', CLIENT),
        (f"for={CLIENT};", CLIENT),
        ("for=unknown", PROXY),
        ("for=_hidden", PROXY),
        ('for="_SEVKISEK"', PROXY),
        (f"for={CLIENT}, for=_hidden, for={OTHER_PROXY}", OTHER_PROXY),
        ("proto=https", PROXY),
        ("", PROXY),
        ("for=", PROXY),
        (f"for ={CLIENT}", PROXY),
        (f"for={CLIENT} by=10.0.0.1", PROXY),
        (f"for={CLIENT};for=1.1.1.1", PROXY),
        (f'for="{CLIENT}', PROXY),
        (f'for="{CLIENT}"x', PROXY),
        (CLIENT, PROXY),
        (f'for="1.1.1.1, for={CLIENT}', CLIENT),  # a quote that a client leaves open
        (f'for="1.1.1.1\\, for="{CLIENT}"', CLIENT),
    ],
)
def test_forwarded_is_read_from_the_right(forwarded: str, found: str) -> None:
    assert origin(PROXY, forwarded=forwarded) == found


def test_where_there_are_both_they_must_agree() -> None:
    """A proxy that writes one of them may pass the other one on, and that one may be anybody's."""
    assert origin(PROXY, forwarded=f"for={CLIENT}", listed=f"1.1.1.1, {CLIENT}") == CLIENT
    assert origin(PROXY, forwarded="for=1.1.1.1", listed=CLIENT) == PROXY
    assert origin(PROXY, forwarded="rubbish", listed=CLIENT) == PROXY


def test_no_more_entries_are_looked_at_than_a_few() -> None:
    far = ",".join([CLIENT, *[OTHER_PROXY] * (MAX_ENTRIES - 1)])
    assert origin(PROXY, listed=far) == CLIENT
    assert origin(PROXY, listed=f"{far},{OTHER_PROXY}") == OTHER_PROXY
    assert origin(PROXY, forwarded="for=1.1.1.1;a=" + "b" * 1000) == PROXY


@given(
    st.text(st.characters(max_codepoint=255)),
    st.sampled_from(["forwarded", "listed"]),
    st.sampled_from([CLIENT, f"for={CLIENT}"]),
)
def test_whatever_a_client_writes_before_what_the_proxy_adds_changes_nothing(
    text: str, header: str, added: str
) -> None:
    found = origin(PROXY, **{header: f"{text}, {added}"})
    assert found == (CLIENT if added.startswith("for=") == (header == "forwarded") else PROXY)


@given(st.text(st.characters(max_codepoint=255)), st.text(st.characters(max_codepoint=255)))
def test_the_answer_is_always_an_address(forwarded: str, listed: str) -> None:
    for lines in ({"forwarded": forwarded}, {"listed": listed}):
        found = origin(PROXY, **lines)
        assert str(ip_address(found)) == found
        assert "%" not in found


def test_an_ipv4_address_that_is_mapped_into_ipv6_is_itself() -> None:
    assert plain_address("::ffff:192.0.2.1") == "192.0.2.1"
    assert plain_address("2001:DB8:0:0::1") == "2001:db8::1"
    assert peer_address("::ffff:192.0.2.1") == "192.0.2.1"
    assert peer_address("192.0.2.1") == "192.0.2.1"
    assert peer_address("fe80::1%eth0") == "fe80::1%eth0"


@pytest.mark.parametrize("part", ["", "10.0.0.1/8", "10.0.0.0/33", "proxy.example", "10.0.0"])
def test_what_is_no_network_is_quoted(part: str) -> None:
    with pytest.raises(ValueError, match="^'" + part.replace(".", r"\.") + "'$"):
        parse_networks(("10.0.0.0/8", part))


def test_a_node_without_trusted_proxies_looks_at_no_header() -> None:
    def header(name: bytes) -> bytes | None:
        raise AssertionError(name)

    assert Node(Config(), max_clients=1).address_of("127.0.0.1", header) == "127.0.0.1"
    node = Node(Config(trusted_proxies="127.0.0.1, 10.0.0.0/8"), max_clients=1)
    assert node.address_of("127.0.0.2", header) == "127.0.0.2"
    assert node.address_of("127.0.0.1", {b"x-forwarded-for": b"1.2.3.4"}.get) == "1.2.3.4"
