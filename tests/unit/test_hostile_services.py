"""What a hostile guest, or an unlucky operator, has done to the services and to who follows the host's network."""

import logging
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any

import pytest
import trio
from attrs import evolve
from harness.stage import GUEST_MAC, network
from scapy.layers.dhcp import BOOTP, DHCP
from scapy.layers.l2 import ARP, Ether

from trio_passt.config import Former, GuestIPv4, GuestNetwork, Resolvers, Wishes
from trio_passt.errors import StartupError
from trio_passt.flow.guest import Guest
from trio_passt.flow.translate import AddressMap
from trio_passt.guests import Current, advertise_router
from trio_passt.host import apart, discovery, netlink
from trio_passt.host.guest_network import decide
from trio_passt.host.network import Address, DefaultRoute, Host, Link, NextHop
from trio_passt.host.resolv import Nameserver, ResolvConf
from trio_passt.host.watch import HostWatch
from trio_passt.services import arp, dhcp, dhcp_options, ndp
from trio_passt.wire import domain

FORMER = GuestIPv4(IPv4Address("192.168.1.5"), 24, IPv4Address("192.168.1.1"), "eth0")
TODAY = GuestIPv4(IPv4Address("192.168.1.1"), 24, IPv4Address("192.168.1.254"), "eth0")
"""The host has become what its gateway was: it left a hotspot, for example, and is one now."""


# -- resolv.conf that is none ------------------------------------------------------------------------------------------


@pytest.fixture
def impatient() -> Any:
    """A test that blocks in the kernel fails."""

    def give_up(*_: object) -> None:
        pytest.fail("blocked in a system call")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(30)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def test_resolv_conf_that_is_a_fifo_is_not_waited_for(tmp_path: Path, impatient: None) -> None:
    path = tmp_path / "resolv.conf"
    os.mkfifo(path)
    assert discovery.read_resolv_conf(path) == ResolvConf()


def test_fifo_that_somebody_else_holds_open_is_not_waited_for(
    tmp_path: Path, impatient: None, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "resolv.conf"
    os.mkfifo(path)
    writer = os.open(path, os.O_RDWR)
    try:
        assert discovery.read_resolv_conf(path) == ResolvConf()
    finally:
        os.close(writer)
    assert caplog.messages == [f"can't read {path}: Resource temporarily unavailable"]


@pytest.mark.parametrize("device", ["/dev/null", "/dev/zero"])
def test_resolv_conf_that_is_a_device(device: str, impatient: None) -> None:
    assert discovery.read_resolv_conf(Path(device)) == ResolvConf()


def test_resolv_conf_that_is_a_directory(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert discovery.read_resolv_conf(tmp_path) == ResolvConf()
    assert caplog.messages == [f"can't read {tmp_path}: Is a directory"]


def bytes_read() -> int:
    """By this process, ever (proc_pid_io(5), `rchar`)."""
    return int(Path("/proc/self/io").read_text().split()[1])


def test_resolv_conf_of_many_megabytes_is_read_in_part(tmp_path: Path) -> None:
    path = tmp_path / "resolv.conf"
    path.write_bytes(b"nameserver 192.0.2.53\nsearch a.example\n" + b"\xff\x00#\n" * (8 << 20))
    before = bytes_read()
    conf = discovery.read_resolv_conf(path)
    assert bytes_read() - before < 1 << 20
    assert [str(server.address) for server in conf.nameservers] == ["192.0.2.53"]
    assert conf.search == ("a.example",)


async def test_resolv_conf_that_becomes_readable_is_a_change(tmp_path: Path, jumping_clock: None) -> None:
    """chmod(1) changes neither its content nor when that was written."""
    path = tmp_path / "resolv.conf"
    path.write_text("nameserver 192.0.2.53\n")
    path.chmod(0)
    with HostWatch(path) as watch:
        watch.close()  # the kernel's messages
        path.chmod(0o644)
        with trio.fail_after(30):
            await watch.changed()


# -- a look that fails -------------------------------------------------------------------------------------------------


class _UnspeakableError(Exception):
    """One that can be pickled, and not be unpickled."""

    def __init__(self, _one: object, _other: object) -> None:
        super().__init__("of another kind")


@pytest.mark.parametrize(
    "failure", [ImportError("half installed"), KeyError(129), ValueError("?"), _UnspeakableError(1, 2)], ids=repr
)
async def test_no_failure_to_understand_the_kernel_is_a_daemons_end(
    failure: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The package is upgraded while it runs, say: the child imports what is not there, or not complete."""

    def read_host_network() -> None:
        raise failure

    monkeypatch.setattr(netlink, "read_host_network", read_host_network)
    with pytest.raises(StartupError) as at_start:
        discovery.discover()
    with pytest.raises(StartupError) as later:
        await discovery.discover_again()
    assert str(at_start.value) == str(later.value) == f"can't read the host's interfaces and routes: {failure!r}"


def _with_sigchld_ignored(test: Callable[[], None]) -> int | None:
    """In a process of its own: what the caller ignores is inherited."""

    def run() -> None:
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        try:
            test()
        except BaseException:
            logging.exception("in the child")
            os._exit(1)
        os._exit(0)

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    process.join(60)
    return process.exitcode


def test_look_of_a_process_whose_children_are_reaped_by_the_kernel() -> None:
    def look() -> None:
        assert apart.in_child(lambda: 42) == 42

    assert _with_sigchld_ignored(look) == 0


def test_look_among_tasks_of_such_a_process_and_one_that_is_given_up() -> None:
    async def look() -> None:
        assert await apart.while_others_run(lambda: 42) == 42
        with trio.move_on_after(0.1):
            await apart.while_others_run(lambda: time.sleep(60))
        with pytest.raises(RuntimeError):
            await apart.while_others_run(lambda: os._exit(3))

    assert _with_sigchld_ignored(lambda: trio.run(look)) == 0


@pytest.mark.parametrize("failure", [BlockingIOError(11, "no processes"), RuntimeError("a child process ended")])
def test_start_without_a_process_to_look_is_an_error_in_words(
    failure: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def in_child(_function: object) -> None:
        raise failure

    monkeypatch.setattr(apart, "in_child", in_child)
    with pytest.raises(StartupError, match="can't look at the host's network: "):
        discovery.discover()


# -- a host that keeps changing ----------------------------------------------------------------------------------------


async def test_advertisements_go_on_while_the_host_keeps_changing(jumping_clock: None) -> None:
    """Or the guest's default router, and its nameservers, would expire after half an hour."""
    sent_at: list[float] = []

    class Responder:
        def advertise_router(self) -> None:
            sent_at.append(trio.current_time())

    current = Current(network())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(advertise_router, Responder(), current)
        started = trio.current_time()
        while trio.current_time() < started + 2 * ndp.ROUTER_LIFETIME_S:
            await trio.sleep(random.Random(len(sent_at)).uniform(1, 5))
            current.change(network())
        nursery.cancel_scope.cancel()
    gaps = [after - before for before, after in zip([started, *sent_at], sent_at, strict=False)]
    assert max(gaps) <= ndp.INITIAL_MAX_INTERVAL_S + 1e-6


def _host(number: int) -> Host:
    return Host(
        (Link(1, "lo", loopback=True), Link(2, "up0")),
        (
            Address(2, IPv4Address(f"10.{number}.0.5"), 24),
            Address(2, IPv6Address(f"2001:db8:{number}::5"), 64),
        ),
        (
            DefaultRoute(4, (NextHop(2, IPv4Address(f"10.{number}.0.1")),)),
            DefaultRoute(6, (NextHop(2, IPv6Address(f"fe80::{number}")),)),
        ),
        ResolvConf((Nameserver(IPv4Address("127.0.0.53")),)),
    )


def test_guest_keeps_its_nameserver_through_dozens_of_changes_until_it_renews() -> None:
    """Its questions, and its renewal, would go to that address in whatever network the host is in."""
    told = decide(Wishes(), _host(1)).network
    first = told.ipv4
    assert first is not None
    for number in range(2, 50):
        told = decide(Wishes(), _host(number), told).network
    assert first in [former.guest for former in told.former]
    where = AddressMap(told).destination_on_host(first.gateway.packed, 53)
    assert where is not None
    assert where.address == IPv4Address("127.0.0.53").packed


# -- the host becomes what its gateway was -----------------------------------------------------------------------------


def test_former_gateways_address_can_become_the_guests() -> None:
    guest = Guest(GuestNetwork(ipv4=FORMER))
    guest.learn_mac(GUEST_MAC)
    guest.learn_address(FORMER.address.packed)
    guest.assign(GuestNetwork(ipv4=TODAY))
    guest.learn_address(TODAY.address.packed)
    assert guest.address_towards(bytes(4)) == TODAY.address.packed
    guest.learn_address(TODAY.gateway.packed)
    assert guest.address_towards(bytes(4)) == TODAY.address.packed


def _who_has(target: str, tell: str) -> bytes:
    mac = GUEST_MAC.hex(":")
    return bytes(ARP(op="who-has", hwsrc=mac, psrc=tell, pdst=target))


def test_guest_that_has_not_heard_still_finds_its_gateway() -> None:
    """It sends its renewal there, and would not hear of today's lease before T2."""
    now = GuestNetwork(ipv4=TODAY, former=(Former(FORMER, on_host=False),))
    frame = arp.answer(_who_has("192.168.1.1", tell="192.168.1.5"), now)
    assert frame is not None
    assert Ether(frame)[ARP].psrc == "192.168.1.1"


@pytest.mark.parametrize(
    ("tell", "former"),
    [
        pytest.param("0.0.0.0", (Former(FORMER, on_host=False),), id="it is about to take it"),
        pytest.param("192.168.1.1", (Former(FORMER, on_host=False),), id="it has it"),
        pytest.param("192.168.1.5", (), id="it has been told"),
        pytest.param("192.168.1.5", (Former(TODAY, on_host=False),), id="it was no gateway's"),
    ],
)
def test_guests_own_address_is_not_answered_for(tell: str, former: tuple[Former, ...]) -> None:
    assert arp.answer(_who_has("192.168.1.1", tell=tell), GuestNetwork(ipv4=TODAY, former=former)) is None


# -- what a request costs ----------------------------------------------------------------------------------------------


def test_search_list_is_compressed_a_few_times_for_a_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not once for each name that has no room: it took 13 ms for each request."""
    calls = 0
    emit_compressed = domain.emit_compressed

    def counted(names: Any) -> bytes:
        nonlocal calls
        calls += 1
        return emit_compressed(names)

    monkeypatch.setattr(domain, "emit_compressed", counted)
    names = tuple(f"n{number}.x{number}.y" for number in range(90))
    options = [("message-type", "discover"), ("param_req_list", list(range(1, 255))), "end"]
    request = bytes(BOOTP(op=1, chaddr=GUEST_MAC) / DHCP(options=options))
    frame = dhcp.answer(GUEST_MAC, request, evolve(network(), resolvers=Resolvers(search=names)))
    assert frame is not None
    assert calls <= 10


@pytest.mark.parametrize("room", range(0, 260, 7))
def test_as_many_names_as_fit(room: int) -> None:
    names = tuple(f"n{number}.x{'x' * (number % 7)}.example" for number in range(1, 12))
    given = dhcp_options._search_that_fits(evolve(network(), resolvers=Resolvers(search=names)), room)
    fitting = [count for count in range(1, 12) if len(domain.emit_compressed(names[:count])) + 2 <= room]
    assert given == ({119: domain.emit_compressed(names[: fitting[-1]])} if fitting else {})
