"""Where the guest's questions to its nameservers go, and how it learns that the host has others now."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.guest.kernel import KernelGuest
from tests.integration import servers
from tests.integration.changing_host import (
    HOME,
    REMOTE,
    ChangingHost,
    World,
    ask_datagram,
    ask_stream,
    host_and_world,
    serving,
)
from tests.integration.client_guest import Advertisement, ClientGuest
from tests.integration.topology import Namespace

DNS, DNS_OVER_TLS = 53, 853
LOOPBACK = {4: "127.0.0.53", 6: "::1"}
FORWARD = {4: "198.18.7.1", 6: "2001:db8:7::1"}
"""Addresses that nobody has; the guest finds the nameserver there."""

ROUTER_LIFETIME_S = 1800

HostInWorld = tuple[ChangingHost, World]

both_versions = pytest.mark.parametrize("version", [4, 6], ids=["ipv4", "ipv6"])
both_transports = pytest.mark.parametrize("ask", [ask_datagram, ask_stream], ids=["udp", "tcp"])
both_ports = pytest.mark.parametrize("port", [DNS, DNS_OVER_TLS], ids=["dns", "dns-over-tls"])


@contextlib.contextmanager
def nameserver(namespace: Namespace, address: str, name: str, ports: tuple[int, ...] = (DNS,)) -> Iterator[None]:
    """It answers each question with its own name and the question, over UDP and TCP."""

    def answer(question: bytes) -> bytes:
        return name.encode() + b": " + question

    with contextlib.ExitStack() as opened:
        for port in ports:
            opened.enter_context(servers.udp_server(namespace, address, answer, port))
            opened.enter_context(
                servers.tcp_server(
                    namespace, address, lambda stream: stream.sendall(answer(servers.receive_all(stream))), port
                )
            )
        yield


@pytest.fixture(scope="module")
def host_in_world() -> Iterator[HostInWorld]:
    """A host at home, for this file, and nameservers in the world; each test has a resolv.conf of its own."""
    with host_and_world() as (host, world), contextlib.ExitStack() as opened:
        host.join(HOME)
        for address in REMOTE.values():
            opened.enter_context(nameserver(world.namespace, address, "remote", (DNS, DNS_OVER_TLS)))
        yield host, world


@pytest.fixture(scope="module")
def forwarding_guest(host_in_world: HostInWorld, directory: Path) -> Iterator[KernelGuest]:
    """A guest for which questions to `FORWARD` go to the world's nameservers."""
    options = [f"--dns-forward={address}" for address in FORWARD.values()]
    options += [f"--dns-host={address}" for address in REMOTE.values()]
    host, world = host_in_world
    host.rewrite_resolv_conf("nameserver 192.0.2.99\n")
    with (
        serving(host, world, directory, *options) as served,
        KernelGuest(served.daemon.socket_path) as guest,
    ):
        yield guest


@both_versions
@both_transports
@both_ports
def test_forward(
    forwarding_guest: KernelGuest, version: int, ask: Callable[[Namespace, str, int, bytes], bytes], port: int
) -> None:
    """The answer comes from the address that was asked, or the guest's socket would not take it."""
    assert ask(forwarding_guest.namespace, FORWARD[version], port, b"name") == b"remote: name"


@both_versions
def test_a_loopback_nameserver_is_behind_the_gateway(host_in_world: HostInWorld, directory: Path, version: int) -> None:
    """Also after the host has another, until the guest knows; then the question goes to that."""
    host, world = host_in_world
    host.rewrite_resolv_conf(f"nameserver {LOOPBACK[version]}\n")
    with (
        nameserver(host, LOOPBACK[version], "loopback"),
        serving(host, world, directory) as served,
        ClientGuest(served, directory) as guest,
    ):
        gateway = HOME.gateways[version]
        if version == 4:
            assert guest.dhcp.next_event("bound").dns == [gateway]
        else:
            guest.frames.advertisements_until(lambda said: list(said.servers) == [gateway], "the nameserver")
            gateway = f"{gateway}%{guest.device_index()}"
        guest.online(version)
        for ask in (ask_datagram, ask_stream):
            assert ask(guest.namespace, gateway, DNS, b"name") == b"loopback: name"

        host.rewrite_resolv_conf(f"nameserver {REMOTE[version]}\n")
        served.log.until(f"DNS servers or domains: {REMOTE[version]}")
        for ask in (ask_datagram, ask_stream):
            assert ask(guest.namespace, gateway, DNS, b"name") == b"remote: name"


def rewrite(host: ChangingHost, text: str) -> None:
    """As editors may do, and most programs."""
    host.rewrite_resolv_conf(text)


def replace(host: ChangingHost, text: str) -> None:
    """As NetworkManager does."""
    host.replace_resolv_conf(text)


def link(host: ChangingHost, text: str) -> None:
    """As systemd-resolved does, when it starts: a link to a file in a directory that was not there."""
    elsewhere = host.resolv_conf.with_name("run") / "resolv.conf"
    host.resolv_conf.unlink()
    host.resolv_conf.symlink_to("run/resolv.conf")
    elsewhere.parent.mkdir()
    elsewhere.write_text(text)


def has_domain(domain: str, said: Advertisement) -> bool:
    """Whether it is told, or taken back."""
    return domain in said.search


def test_resolv_conf_changes(host_in_world: HostInWorld, directory: Path) -> None:
    """Each time, the guest is told what holds, and what does not any more; at first and at last there is no file."""
    host, world = host_in_world
    host.resolv_conf.unlink()
    with serving(host, world, directory) as served, ClientGuest(served, directory) as guest:
        lease = guest.dhcp.next_event("bound")
        assert (lease.dns, lease.search) == ([], [])
        guest.online()
        served.log.until("guest connected")

        former_servers: dict[str, int] = {}
        former_search: dict[str, int] = {}
        for number, change in enumerate((rewrite, replace, link)):
            ipv4, ipv6, domain = f"198.51.100.6{number}", f"2001:db8:2::6{number}", f"change{number}.example"
            change(host, f"search common.example {domain}\nnameserver {ipv4}\nnameserver {ipv6}\n")
            (line,) = served.log.until("DNS servers")
            assert f" {ipv4}, {ipv6}; search: common.example {domain} (" in line
            said = guest.frames.advertisements_until(functools.partial(has_domain, domain), domain)
            told = next(each for each in said if domain in each.search)
            assert told.lifetime_s == ROUTER_LIFETIME_S
            assert told.servers == former_servers | {ipv6: ROUTER_LIFETIME_S}
            assert told.search == former_search | dict.fromkeys(("common.example", domain), ROUTER_LIFETIME_S)
            guest.dhcp.renew()
            lease = guest.dhcp.next_event("renew")
            assert (lease.dns, lease.search) == ([ipv4], ["common.example", domain])
            former_servers, former_search = {ipv6: 0}, {domain: 0}

        host.resolv_conf.unlink()
        (line,) = served.log.until("DNS servers")
        assert " none; search: none (" in line
        guest.frames.advertisements_until(
            lambda said: (said.servers, said.search) == (former_servers, former_search | {"common.example": 0}),
            "that there are none any more",
        )
        guest.dhcp.renew()
        lease = guest.dhcp.next_event("renew")
        assert (lease.dns, lease.search) == ([], [])
        assert served.log.more() == []
