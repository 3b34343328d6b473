"""Spare ports: as many as can be had, and what is said of the others."""

import errno
import gc
import logging
import os
import re
import resource
import socket
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from ipaddress import IPv4Address

import pytest
import trio
from forwarded_ports import BOTH, OURSELVES, Recorder, client
from harness.stage import V4, V6, Family
from harness.waiting import eventually

from trio_passt.config import Binding, PortForward, Protocol
from trio_passt.errors import StartupError
from trio_passt.host import binder
from trio_passt.host.limits import share_for_flows
from trio_passt.host.listeners import PortListeners
from trio_passt.host.opener import Opener
from trio_passt.host.readiness import Readiness

pytestmark = pytest.mark.usefixtures("namespace")

FAMILIES = [socket.AF_INET, socket.AF_INET6]


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Holders of ports are found however busy the machine is."""
    monkeypatch.setattr(binder, "FIND_HOLDERS_WITHIN_S", 30)


def spare(protocol: Protocol, first: int, last: int, address: str | None = None) -> PortForward:
    bind = IPv4Address(address) if address is not None else None
    return PortForward(protocol, first, last, first, bind, binding=Binding.SPARE)


@contextmanager
def bound(*forwards: PortForward, families: list[socket.AddressFamily] = FAMILIES) -> Iterator[PortListeners]:
    listeners = PortListeners.bind(forwards, families)
    try:
        yield listeners
    finally:
        listeners.close()


@contextmanager
def taken(family: socket.AddressFamily, protocol: Protocol, *ports: int) -> Iterator[None]:
    """By us."""
    with ExitStack() as opened:
        for port in ports:
            kind = socket.SOCK_STREAM if protocol is Protocol.TCP else socket.SOCK_DGRAM
            sock = opened.enter_context(socket.socket(family, kind))
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind(("", port))
            if protocol is Protocol.TCP:
                sock.listen()
        yield


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> list[tuple[int, str]]:
    """What is said, but for details; it grows."""
    caplog.set_level(logging.INFO)
    found: list[tuple[int, str]] = []

    class Keeper(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append((record.levelno, record.getMessage()))

    caplog.handler.addFilter(lambda record: found.append((record.levelno, record.getMessage())) is None)
    return found


def test_all_there_are(lines: list[tuple[int, str]]) -> None:
    forwards = [spare(protocol, 2000, 2009) for protocol in BOTH]
    with bound(*forwards) as listeners:
        assert listeners.bound == forwards
        assert listeners.descriptors == 40
    assert lines == [
        (logging.INFO, "forwarding 10 of 10 non-ephemeral TCP ports"),
        (logging.INFO, "forwarding 10 of 10 non-ephemeral UDP ports"),
    ]


def test_what_others_have_is_left_to_them(lines: list[tuple[int, str]]) -> None:
    with (
        taken(socket.AF_INET, Protocol.TCP, 2003, 2004, 2006),
        taken(socket.AF_INET6, Protocol.TCP, 2003, 2004),
        taken(socket.AF_INET6, Protocol.UDP, 2005),
        bound(*(spare(protocol, 2000, 2009) for protocol in BOTH)) as listeners,
    ):
        assert listeners.bound == [
            spare(Protocol.TCP, 2000, 2002),
            spare(Protocol.TCP, 2005, 2009),
            spare(Protocol.UDP, 2000, 2009),
        ]
    assert lines == [
        (
            logging.INFO,
            "forwarding 8 of 10 non-ephemeral TCP ports, 1 of them in one address family only;"
            f" 3 in use by others: 2003-2004 by {OURSELVES}, 2006 by {OURSELVES}",
        ),
        (
            logging.INFO,
            "forwarding 10 of 10 non-ephemeral UDP ports, 1 of them in one address family only;"
            f" 1 in use by others: 2005 by {OURSELVES}",
        ),
    ]


def test_not_more_than_a_few_holders_are_named(lines: list[tuple[int, str]]) -> None:
    others = range(2001, 2021, 2)
    with taken(socket.AF_INET, Protocol.TCP, *others), bound(spare(Protocol.TCP, 2000, 2030, "0.0.0.0")):
        pass
    named = ", ".join(f"{port} by {OURSELVES}" for port in list(others)[:8])
    assert lines == [(logging.INFO, f"forwarding 21 of 31 non-ephemeral TCP ports; 10 in use by others: {named}, ...")]


def test_what_takes_privileges(lines: list[tuple[int, str]], monkeypatch: pytest.MonkeyPatch) -> None:
    open_port = Opener.open

    def for_others(opener: Opener, port: int) -> socket.socket:
        if port < 1024:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return open_port(opener, port)

    monkeypatch.setattr(Opener, "open", for_others)
    with bound(spare(Protocol.TCP, 1020, 1025), spare(Protocol.UDP, 1023, 1024)) as listeners:
        assert listeners.bound == [spare(Protocol.TCP, 1024, 1025), spare(Protocol.UDP, 1024, 1024)]
    needs = "CAP_NET_BIND_SERVICE (or a lower net.ipv4.ip_unprivileged_port_start, see sysctl(8))"
    assert lines == [
        (logging.INFO, f"forwarding 2 of 6 non-ephemeral TCP ports; 4 need {needs}"),
        (logging.INFO, f"forwarding 1 of 2 non-ephemeral UDP ports; 1 needs {needs}"),
    ]


def test_host_without_a_family(lines: list[tuple[int, str]], monkeypatch: pytest.MonkeyPatch) -> None:
    """That is no loss."""
    open_port = Opener.open

    def in_ipv4(opener: Opener, port: int) -> socket.socket:
        if opener.family == socket.AF_INET6:
            raise OSError(errno.EAFNOSUPPORT, os.strerror(errno.EAFNOSUPPORT))
        return open_port(opener, port)

    monkeypatch.setattr(Opener, "open", in_ipv4)
    with bound(spare(Protocol.TCP, 2000, 2009)) as listeners:
        assert listeners.descriptors == 10
    assert [level for level, _ in lines] == [logging.INFO]
    assert "refused" not in lines[0][1]


class TestNone:
    """Not a single one could be had."""

    def test_is_an_error(self) -> None:
        forward = spare(Protocol.TCP, 2000, 2009, "192.0.2.77")
        with pytest.raises(StartupError, match=r"^can't forward TCP ports 2000-2009 of 192\.0\.2\.77: Cannot assign"):
            PortListeners.bind([forward])

    def test_names_who_has_them_all(self) -> None:
        with (
            taken(socket.AF_INET, Protocol.TCP, *range(2000, 2010)),
            pytest.raises(StartupError) as caught,
        ):
            PortListeners.bind([spare(Protocol.TCP, 2000, 2009, "0.0.0.0")])
        assert str(caught.value) == (
            f"can't forward TCP ports 2000-2009 of 0.0.0.0: Address already in use by {OURSELVES}"
        )

    def test_of_one_protocol_is_a_warning(self, lines: list[tuple[int, str]]) -> None:
        with (
            taken(socket.AF_INET, Protocol.UDP, 2000),
            taken(socket.AF_INET6, Protocol.UDP, 2000),
            bound(*(spare(protocol, 2000, 2000) for protocol in BOTH)),
        ):
            pass
        assert [level for level, _ in lines] == [logging.INFO, logging.WARNING]
        assert lines[1][1].startswith("forwarding 0 of 1 non-ephemeral UDP ports; ")


@contextmanager
def descriptor_limit(most: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def are_whole(listeners: PortListeners, sockets_of_a_port: int) -> bool:
    """Each port that there is has all its sockets, and they are the lowest."""
    counts = Counter(port.port for port in listeners.spare)
    return set(counts.values()) == {sockets_of_a_port} and sorted(counts) == list(range(2000, 2000 + len(counts)))


class TestLimitOfDescriptors:
    def test_leaves_a_share_to_the_guests_connections(self, lines: list[tuple[int, str]]) -> None:
        there = len(os.listdir("/proc/self/fd"))
        limit = 400 + there
        with (
            descriptor_limit(limit),
            bound(*(spare(protocol, 2000, 2199) for protocol in BOTH)) as listeners,
        ):
            most = limit - limit // 4 - there - 1
            assert most - 4 < listeners.descriptors <= most
            assert are_whole(listeners, 4)
            assert listeners.bound == [spare(protocol, 2000, 1999 + listeners.descriptors // 4) for protocol in BOTH]
        (level, text), *others = lines
        ports = listeners.bound
        assert level == logging.WARNING
        assert ports == []
        assert f" of 800 sockets for non-ephemeral ports: this process may have {limit} files open, " in text
        assert text.startswith("forwarding only up to port 20")
        enough = int(text.split(", ")[-1].split()[0])
        assert text.endswith(f"{enough} would be enough (LimitNOFILE= or ulimit -n)")
        assert [level for level, _ in others] == [logging.INFO, logging.INFO]
        with descriptor_limit(enough + 3), bound(*(spare(protocol, 2000, 2199) for protocol in BOTH)) as listeners:
            assert listeners.descriptors == 800

    def test_ports_that_are_named_come_first(self) -> None:
        """Wherever they are listed."""
        required = PortForward(Protocol.TCP, 3000, 3039, 80)
        wanted = PortForward(Protocol.UDP, 3000, 3039, 80, binding=Binding.WANTED)
        with (
            descriptor_limit(250 + len(os.listdir("/proc/self/fd"))),
            bound(spare(Protocol.TCP, 2000, 2199), wanted, required) as listeners,
        ):
            assert {required, wanted} <= set(listeners.bound)
            assert are_whole(listeners, 2)

    def test_port_that_is_only_wanted_leaves_the_share_too(self, lines: list[tuple[int, str]]) -> None:
        there = len(os.listdir("/proc/self/fd"))
        limit = 100 + there
        wanted = PortForward(Protocol.UDP, 3000, 3059, 80, IPv4Address("0.0.0.0"), binding=Binding.WANTED)
        required = PortForward(Protocol.TCP, 3000, 3029, 80, IPv4Address("0.0.0.0"))
        with descriptor_limit(limit), bound(wanted, required) as listeners:
            assert listeners.descriptors == limit - limit // 4 - there - 1
            assert [(forward.protocol, forward.first) for forward in listeners.bound] == [
                (Protocol.UDP, 3000),
                (Protocol.TCP, 3000),
            ]
            refused = f"can't forward UDP ports {3000 + listeners.descriptors - 30}-3059 of 0.0.0.0"
        hint = f"this process may have {limit} files open (LimitNOFILE= or ulimit -n), going on without it"
        assert lines == [(logging.WARNING, f"{refused}: Too many open files: {hint}")]

    def test_named_ports_that_are_too_many_are_an_error(self) -> None:
        before = len(os.listdir("/proc/self/fd"))
        with descriptor_limit(50 + before):
            with pytest.raises((StartupError, ExceptionGroup)) as caught:
                PortListeners.bind([PortForward(Protocol.TCP, 3000, 3039, 80)])
            assert len(os.listdir("/proc/self/fd")) == before
        errors = caught.value.exceptions if isinstance(caught.value, ExceptionGroup) else [caught.value]
        assert all(f"Too many open files: this process may have {50 + before} files open" in str(e) for e in errors)

    def test_none_at_all(self) -> None:
        with (
            descriptor_limit(len(os.listdir("/proc/self/fd")) + 3),
            pytest.raises(
                StartupError, match=r"^can't forward more than 0 of 80 sockets for non-ephemeral ports: this pr"
            ),
        ):
            PortListeners.bind([spare(protocol, 2000, 2019) for protocol in BOTH])


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (errno.ENFILE, "this host's fs.file-max is "),
        (errno.ENOSPC, "this host's fs.epoll.max_user_watches is "),
        (errno.ENOMEM, "this host has no memory for more sockets"),
        (errno.ENOBUFS, "this host has no memory for more sockets"),
    ],
)
@pytest.mark.parametrize("met_at", [101, 102, 103, 104])
def test_limit_of_the_host(
    lines: list[tuple[int, str]], monkeypatch: pytest.MonkeyPatch, number: int, text: str, met_at: int
) -> None:
    """As many are given back as the connections' share is; what remains is whole, and works."""
    open_port, opened = Opener.open, []

    def until_it_is_met(opener: Opener, port: int) -> socket.socket:
        opened.append(port)
        if len(opened) >= met_at:
            raise OSError(number, os.strerror(number))
        return open_port(opener, port)

    monkeypatch.setattr(Opener, "open", until_it_is_met)
    before = len(os.listdir("/proc/self/fd"))
    with bound(*(spare(protocol, 2000, 2199) for protocol in BOTH)) as listeners:
        most = met_at - 1 - share_for_flows(met_at - 1)
        assert most - 4 < listeners.descriptors <= most
        assert are_whole(listeners, 4)
        assert len(os.listdir("/proc/self/fd")) == before + 1 + listeners.descriptors
        last = listeners.spare[-1].port
        assert listeners.udp_port(last, socket.inet_aton("127.0.0.1")) is not None
        assert listeners.udp_port(last + 1, socket.inet_aton("127.0.0.1")) is None
        assert lines[0][0] == logging.WARNING
        sockets = f"forwarding only up to port {last}, {listeners.descriptors} of 800 sockets for non-ephemeral ports"
        assert lines[0][1].startswith(f"{sockets}: {text}")


class TestFamilyThatComesLater:
    async def test_is_bound_little_by_little(
        self, family: Family, lines: list[tuple[int, str]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Others have their turn meanwhile, and connections to what is bound already arrive."""
        monkeypatch.setattr(binder, "PORTS_PER_TURN", 1)
        receiver, other = Recorder(), V6 if family is V4 else V4
        forwards = [spare(protocol, 2000, 2299) for protocol in BOTH]
        with bound(*forwards, families=[other.socket_family]) as listeners:
            lines.clear()
            listeners.receiver = receiver
            async with trio.open_nursery() as nursery:
                nursery.start_soon(listeners.run)
                listeners.add_families(FAMILIES)
                turns = 0
                while listeners.descriptors < 1200:
                    await trio.lowlevel.checkpoint()
                    turns += 1
                assert turns > 100
                with client(family, socket.SOCK_STREAM, 2299), client(family, socket.SOCK_DGRAM, 2000) as datagrams:
                    datagrams.send(b"hello")
                    await receiver.receives(b"hello")
                    await eventually(lambda: receiver.connections or None, "a connection")
                nursery.cancel_scope.cancel()
            assert listeners.bound == forwards
            receiver.close()
        assert lines == [
            (logging.INFO, f"forwarding 300 of 300 non-ephemeral {protocol.name} ports") for protocol in BOTH
        ]

    async def test_that_has_nothing_to_give_is_a_warning(self, lines: list[tuple[int, str]]) -> None:
        forward = spare(Protocol.TCP, 2000, 2001)
        with (
            taken(socket.AF_INET6, Protocol.TCP, 2000, 2001),
            bound(forward, families=[socket.AF_INET]) as listeners,
        ):
            lines.clear()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(listeners.run)
                listeners.add_families(FAMILIES)
                await eventually(lambda: lines or None, "a line")
                nursery.cancel_scope.cancel()
        text = f"forwarding 0 of 2 non-ephemeral TCP ports; 2 in use by others: 2000-2001 by {OURSELVES}"
        assert lines == [(logging.WARNING, text)]


def test_many_are_not_the_garbage_collectors_business() -> None:
    """They live as long as the program."""
    before = gc.get_freeze_count()
    try:
        with bound(spare(Protocol.UDP, 2000, 2020)):
            assert gc.get_freeze_count() == before
        with bound(spare(Protocol.UDP, 2000, 2600)):
            assert gc.get_freeze_count() > before + 1200
            assert gc.isenabled()
    finally:
        gc.unfreeze()


def test_each_that_was_refused_is_said_in_detail(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with taken(socket.AF_INET, Protocol.TCP, 2003, 2004), bound(spare(Protocol.TCP, 2000, 2009)):
        pass
    assert [record.getMessage() for record in caplog.records if record.levelno == logging.DEBUG] == [
        f"can't forward TCP ports 2003-2004 of 0.0.0.0: Address already in use by {OURSELVES}"
    ]


def test_what_is_refused_for_another_reason(lines: list[tuple[int, str]], monkeypatch: pytest.MonkeyPatch) -> None:
    """By a security module, for example."""
    open_port = Opener.open

    def by_policy(opener: Opener, port: int) -> socket.socket:
        if port in (2001, 2005):
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
        return open_port(opener, port)

    monkeypatch.setattr(Opener, "open", by_policy)
    with bound(spare(Protocol.TCP, 2000, 2009)):
        pass
    assert lines == [(logging.INFO, "forwarding 8 of 10 non-ephemeral TCP ports; 2 refused: Operation not permitted")]


def test_socket_that_cannot_be_watched_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: object, **_options: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Readiness, "watch", refuse)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(StartupError, match=r"No space left on device: this host's fs\.epoll\.max_user_watches is \d+ "):
        PortListeners.bind([PortForward(Protocol.TCP, 2000, 2000, 80)])
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("where", ["203.0.113.9", "%nope0"])
def test_what_is_wrong_with_the_place_is_found_out_once(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not by trying each of 65,000 ports there."""
    tried = []
    original = Opener.open

    def counted(opener: Opener, port: int) -> socket.socket:
        tried.append(port)
        return original(opener, port)

    monkeypatch.setattr(Opener, "open", counted)
    address = None if where.startswith("%") else IPv4Address(where)
    interface = where[1:] if address is None else None
    forward = PortForward(Protocol.TCP, 1, 65535, 1, address, interface, binding=Binding.SPARE)
    with pytest.raises(StartupError, match=re.escape(where)) as caught, bound(forward, families=[socket.AF_INET]):
        pass
    assert "1-65535" in str(caught.value)
    assert tried == [1]


def test_a_place_that_comes_later_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """`add_families`: what was hopeless need not be so any more."""
    forward = PortForward(Protocol.TCP, 8000, 8001, 8000, IPv4Address("203.0.113.9"), binding=Binding.WANTED)
    with bound(forward) as listeners:
        assert not listeners.bound
        subprocess.run(["ip", "address", "add", "203.0.113.9/32", "dev", "lo"], check=True)
        listeners.add_families(FAMILIES)
        assert [(found.first, found.last) for found in listeners.bound] == [(8000, 8001)]


def test_an_interface_whose_name_is_not_utf_8() -> None:
    name = os.fsdecode(b"\xffport0")
    subprocess.run([b"ip", b"link", b"add", os.fsencode(name), b"type", b"veth", b"peer", b"name", b"far0"], check=True)
    subprocess.run([b"ip", b"link", b"set", os.fsencode(name), b"up"], check=True)
    forward = PortForward(Protocol.TCP, 8000, 8000, 8000, None, name)
    with bound(forward) as listeners:
        assert listeners.bound == [forward]
