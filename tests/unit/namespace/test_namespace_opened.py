"""A namespace from its opening to its end, with the kernel's own; and that nothing is left where it fails."""

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

import pytest
import trio
from attrs import evolve
from harness.own_namespace import own_namespace
from processes_here import WAIT_S, nothing_left, wait_for

from trio_passt.config import Config, GuestIPv4, GuestIPv6, GuestNetwork, Namespace
from trio_passt.errors import StartupError
from trio_passt.namespace import configurator as configurator_module
from trio_passt.namespace import template as template_module
from trio_passt.namespace.opened import Ended, OpenedNamespace, default_interface, open_namespace
from trio_passt.namespace.template import read_template

IPV4 = GuestIPv4(IPv4Address("192.0.2.2"), 24, IPv4Address("192.0.2.1"), "no-such-interface")
IPV6 = GuestIPv6(IPv6Address("2001:db8:1::2"), 64, IPv6Address("fe80::1"))
NETWORK = GuestNetwork(IPV4, IPV6)


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    with nothing_left():
        yield


def config(network: GuestNetwork = NETWORK, **values: object) -> Config:
    values = {"command": ("sleep", "1000"), "interface": "tap3"} | values
    return Config(network, namespace=Namespace(**values))  # type: ignore[arg-type]


@contextmanager
def opened(wanted: Config) -> Iterator[OpenedNamespace]:
    namespace = open_namespace(wanted)
    try:
        yield namespace
    finally:
        namespace.close()
        os.close(namespace.tap_fd)


def routes(namespace: OpenedNamespace) -> set[str]:
    """Destinations and gateways of IPv4, as the kernel writes them in hexadecimal."""
    lines = namespace.side.proc_net("route").decode().splitlines()[1:]
    return {" ".join(line.split()[:3]) for line in lines}


async def test_command() -> None:
    with opened(config(configures=True)) as namespace:
        assert namespace.runs_command
        assert namespace.interface == "tap3"
        assert routes(namespace) == {"tap3 000200C0 00000000", "tap3 00000000 010200C0"}
        assert b"20010db8000100000000000000000002" in namespace.side.proc_net("if_inet6")
        namespace.start_command()
        namespace.signal(signal.SIGTERM)
        with trio.fail_after(WAIT_S):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_again_and_again, namespace)
                assert await namespace.wait_end() == Ended("the command has ended with status 143", 143)
                nursery.cancel_scope.cancel()
        assert routes(namespace), "it is there until it is closed"
        namespace.signal(signal.SIGTERM)
        namespace.start_command()


async def _again_and_again(namespace: OpenedNamespace) -> None:
    """A signal before the command has begun is for nobody."""
    while True:
        await trio.sleep(0.02)
        namespace.signal(signal.SIGTERM)


async def test_process_that_is_there() -> None:
    process = _sleeping()
    with opened(config(command=(), pid=process.pid, configures=True)) as namespace:
        assert not namespace.runs_command
        namespace.start_command()
        namespace.signal(signal.SIGTERM)
        assert "tap3:" in await trio.Path(f"/proc/{process.pid}/net/dev").read_text()
        process.kill()
        with trio.fail_after(WAIT_S):
            assert await namespace.wait_end() == Ended(f"process {process.pid} has ended")
    process.wait()


def _sleeping() -> subprocess.Popen[bytes]:
    process = subprocess.Popen(["unshare", "--user", "--net", "sleep", "1000"])
    wait_for(lambda: Path(f"/proc/{process.pid}/comm").read_text() == "sleep\n")
    return process


def test_it_is_not_touched_unless_asked_for() -> None:
    with opened(config()) as namespace:
        assert routes(namespace) == set()
        assert b"tap3" not in namespace.side.proc_net("if_inet6")


def test_name_of_the_interface() -> None:
    assert default_interface(GuestNetwork(evolve(IPV4, interface="eth7"), evolve(IPV6, interface="eth8"))) == "eth7"
    assert default_interface(GuestNetwork(None, evolve(IPV6, interface="eth8"))) == "eth8"
    assert default_interface(GuestNetwork(evolve(IPV4, interface=None), IPV6)) == "tap0"


NO_GATEWAY = GuestNetwork(evolve(IPV4, gateway=IPv4Address("192.0.2.255")))


@pytest.mark.parametrize(
    ("wanted", "text"),
    [
        (config(pid=4194303), "there is no process 4194303"),
        (config(path=Path("/proc/self/ns/net")), "that this program runs in"),
        (config(interface="lo", configures=True), "'lo' in the namespace: that name is taken"),
        (config(mac=bytes(6)), "can't give tap3 the MAC address 00:00:00:00:00:00: Cannot assign"),
        (config(NO_GATEWAY, configures=True), r"can't add the route default via 192.0.2.255 by tap3: Invalid argument"),
        (config(evolve(NETWORK, mtu_bytes=70000), configures=True), r"can't bring tap3 up \(MTU: 70000\): Invalid"),
    ],
)
def test_one_line_says_what_is_wrong(wanted: Config, text: str) -> None:
    with pytest.raises(StartupError, match=text) as raised:
        open_namespace(wanted)
    assert "\n" not in str(raised.value)


def test_process_that_configures_ends_too_early(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(configurator_module, "_live", lambda *_: 3)
    with pytest.raises(StartupError, match="the process that configures the namespace has ended with status 3"):
        open_namespace(config(configures=True))


def test_broken_installation(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is imported late may be another version by then."""
    monkeypatch.delattr(template_module, "read_templates")
    with pytest.raises(StartupError, match=r"can't configure the namespace: ImportError\("):
        open_namespace(config(configures=True))


def test_work_is_done_meanwhile_and_may_fail() -> None:
    done = []
    namespace = open_namespace(config(configures=True), meanwhile=lambda: done.append(1))
    assert done == [1]
    namespace.close()
    os.close(namespace.tap_fd)
    with pytest.raises(ZeroDivisionError):
        open_namespace(config(configures=True), meanwhile=lambda: done.append(1 // 0))


def test_router_with_many_routes(caplog: pytest.LogCaptureFixture) -> None:
    many = "".join(f"route add 10.0.{number}.0/24 via 192.0.2.77\n" for number in range(21))
    lines = "address add 192.0.2.2/24 dev uplink\nlink set uplink up\nroute add default via 192.0.2.1\n" + many
    with own_namespace():
        subprocess.run(["ip", "link", "add", "uplink", "type", "veth", "peer", "name", "cable"], check=True)
        subprocess.run(["ip", "-batch", "-"], input=lines, text=True, check=True)
        assert len([one for one in read_template("uplink").routes if one.destination.version == 4]) == 23
        template_module_most, template_module.MOST_ROUTES = template_module.MOST_ROUTES, 20
        try:
            few = read_template("uplink")
        finally:
            template_module.MOST_ROUTES = template_module_most
        assert {str(one.destination) for one in few.routes if one.destination.version == 4} == {
            "0.0.0.0/0",
            "192.0.2.0/24",
        }
        assert "only default routes and its own subnets' are copied" in caplog.text
