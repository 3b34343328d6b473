"""A look at the host: the real kernel's network, and files that stand for resolv.conf."""

import errno
import logging
import os
import select
import subprocess
import sys
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

import pytest
import trio

from trio_passt.errors import StartupError
from trio_passt.host import apart, discovery, netlink
from trio_passt.host.discovery import MOST_READ_BYTES, discover, discover_again, read_resolv_conf
from trio_passt.host.network import Address, DefaultRoute, Host, Link, NextHop
from trio_passt.host.resolv import Nameserver, ResolvConf, parse_resolv_conf


@pytest.fixture
def resolv_conf(tmp_path: Path) -> Path:
    path = tmp_path / "resolv.conf"
    path.write_text("nameserver 192.0.2.53\nsearch example.org\n")
    return path


EXPECTED = ResolvConf((Nameserver(IPv4Address("192.0.2.53")),), ("example.org",))


def test_at_start(resolv_conf: Path) -> None:
    host = discover(resolv_conf)
    assert any(link.loopback for link in host.links)
    assert host.resolv_conf == EXPECTED


async def test_again_while_others_run(resolv_conf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The look does not end before they have had their turns."""
    turns = 0
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    opened = os.open(gate, os.O_RDWR)
    read_host_network = netlink.read_host_network

    def look() -> object:
        with gate.open("rb", buffering=0) as waiting:
            assert select.select([waiting], [], [], 30)[0], "nobody else runs"
        return read_host_network()

    async def others() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1
            if turns == 11:
                os.write(opened, b"x")

    monkeypatch.setattr(netlink, "read_host_network", look)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(others)
        host = await discover_again(resolv_conf)
        nursery.cancel_scope.cancel()
    os.close(opened)
    assert any(link.loopback for link in host.links)
    assert host.resolv_conf == EXPECTED
    assert turns > 10


@pytest.mark.usefixtures("namespace")
async def test_it_finds_what_there_is(resolv_conf: Path) -> None:
    """The second look finds what has changed since the first; the file is read anew, too."""
    ip("link add eth0 type veth peer name far0", "link set eth0 up", "address add 192.0.2.2/24 dev eth0")
    before = discover(resolv_conf)
    index = next(link.index for link in before.links if link.name == "eth0")
    assert Link(index, "eth0") in before.links
    assert Address(index, IPv4Address("192.0.2.2"), 24) in before.addresses
    assert before.routes == ()
    assert await discover_again(resolv_conf) == before
    ip("route add default via 192.0.2.1", "address add 2001:db8::2/64 dev eth0 nodad")
    resolv_conf.write_text("")  # noqa: ASYNC240
    now = await discover_again(resolv_conf)
    assert now.routes == (DefaultRoute(4, (NextHop(index, IPv4Address("192.0.2.1")),)),)
    assert IPv6Address("2001:db8::2") in {address.address for address in now.addresses}
    assert now.resolv_conf == ResolvConf()


def ip(*commands: str) -> None:
    for command in commands:
        subprocess.run(["ip", *command.split()], check=True)


def no_netlink() -> None:
    raise StartupError("can't read the host's interfaces and routes from netlink")


async def test_where_there_is_no_netlink(monkeypatch: pytest.MonkeyPatch, resolv_conf: Path) -> None:
    monkeypatch.setattr(netlink, "read_host_network", no_netlink)
    with pytest.raises(StartupError, match="netlink"):
        discover(resolv_conf)
    with pytest.raises(StartupError, match="netlink"):
        await discover_again(resolv_conf)


def upgraded_meanwhile() -> None:
    raise AttributeError("module 'pyroute2' has no attribute 'IPRoute'")


async def test_whatever_else_goes_wrong_there_is_said_in_one_line(
    monkeypatch: pytest.MonkeyPatch, resolv_conf: Path
) -> None:
    """A daemon that runs for months must not end because its libraries were upgraded."""
    monkeypatch.setattr(netlink, "read_host_network", upgraded_meanwhile)
    with pytest.raises(StartupError, match=r"^can't read the host's interfaces and routes: AttributeError\("):
        discover(resolv_conf)
    with pytest.raises(StartupError, match=r"^can't read the host's interfaces and routes: AttributeError\("):
        await discover_again(resolv_conf)


@pytest.mark.parametrize(
    ("failure", "text"),
    [
        (BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN)), "Resource temporarily unavailable"),
        (RuntimeError("a child process ended with status -9"), "a child process ended with status -9"),
    ],
    ids=["no process", "killed"],
)
def test_no_look_at_start(monkeypatch: pytest.MonkeyPatch, failure: Exception, text: str) -> None:
    def fail(_function: object) -> None:
        raise failure

    monkeypatch.setattr(apart, "in_child", fail)
    with pytest.raises(StartupError, match=f"^can't look at the host's network: .*{text}"):
        discover()


async def test_what_netlink_needs_takes_no_memory_here(resolv_conf: Path) -> None:
    look = "import sys, trio; from trio_passt.host.discovery import discover, discover_again; discover();"
    check = " trio.run(discover_again); sys.exit('pyroute2' in sys.modules)"
    await trio.run_process([sys.executable, "-c", look + check])


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", ResolvConf()),
        (b"nameserver 192.0.2.53\nsearch example.org\n", EXPECTED),
        (b"# \xff\xfe Latin-1 or worse: \xe4\nnameserver 192.0.2.53\nsearch \xe4 example.org\n", EXPECTED),
    ],
    ids=["empty", "plain", "not UTF-8"],
)
def test_file_as_it_is(tmp_path: Path, content: bytes, expected: ResolvConf) -> None:
    path = tmp_path / "resolv.conf"
    path.write_bytes(content)
    assert read_resolv_conf(path) == expected


def test_link_to_the_file(resolv_conf: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(resolv_conf)
    assert read_resolv_conf(link) == EXPECTED


@pytest.mark.parametrize(
    "make", [lambda _path: None, lambda path: path.symlink_to("/nonexistent/x")], ids=["none", "dangling link"]
)
def test_absent_file_is_nothing_to_speak_of(
    tmp_path: Path, make: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "resolv.conf"
    make(path)
    assert read_resolv_conf(path) == ResolvConf()
    assert not caplog.records


def test_unreadable_file_is_as_an_empty_one_and_that_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert read_resolv_conf(tmp_path) == ResolvConf()
    assert [(record.levelno, record.getMessage()) for record in caplog.records] == [
        (logging.WARNING, f"can't read {tmp_path}: Is a directory")
    ]


def test_it_is_never_waited_for(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A FIFO without a writer is empty; one that has one, and nothing in it, can't be read."""
    path = tmp_path / "resolv.conf"
    os.mkfifo(path)
    assert read_resolv_conf(path) == ResolvConf()
    assert not caplog.records
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    writer = os.open(path, os.O_WRONLY)
    assert read_resolv_conf(path) == ResolvConf()
    assert "Resource temporarily unavailable" in caplog.text
    os.write(writer, b"nameserver 192.0.2.53\nsearch example.org\n")
    assert read_resolv_conf(path) == EXPECTED
    os.close(writer)
    os.close(reader)


def test_file_without_end(tmp_path: Path) -> None:
    """What is beyond some size is not looked at."""
    path = tmp_path / "resolv.conf"
    path.write_bytes(b"nameserver 192.0.2.53\nsearch example.org\n" + b"#" * MOST_READ_BYTES + b"\nsearch other\n")
    assert read_resolv_conf(path) == EXPECTED
    endless = tmp_path / "endless"
    endless.symlink_to("/dev/zero")
    assert read_resolv_conf(endless) == ResolvConf()


def test_no_descriptor_is_left_open(resolv_conf: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for path in (resolv_conf, resolv_conf.parent, Path("/nonexistent")):
        read_resolv_conf(path)
    assert len(os.listdir("/proc/self/fd")) == before


def test_the_file_is_the_systems() -> None:
    assert Path("/etc/resolv.conf") == discovery.RESOLV_CONF


def test_default_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """Found in what both looks read, without one named."""
    monkeypatch.setattr(apart, "in_child", lambda _function: ([], [], []))
    text = discovery.RESOLV_CONF.read_text() if discovery.RESOLV_CONF.exists() else ""
    assert discover() == Host(resolv_conf=parse_resolv_conf(text))
