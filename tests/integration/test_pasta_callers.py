"""Programs that run containers, with ours for the network: Podman and RootlessKit themselves, and their argument lists.

They are those of Debian 12 and 13 (tests/guest/containers.py), run by an ordinary user, without root's help. They find
trio-pasta as `pasta`, and trio-slirp4netns as `slirp4netns`. Where Debian's versions call it in another way than newer
ones do, the newer one's list is replayed.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import select
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.guest import containers, tun
from tests.guest.unprivileged import Unprivileged
from tests.integration import servers
from tests.integration.caller import end_of
from tests.integration.changing_host import wait_for
from tests.integration.client_guest import busybox
from tests.integration.container_engine import IMAGE, PAGE, Engine, running
from tests.integration.daemon import daemon_directory, namespace_program, slirp4netns_program
from tests.integration.topology import HOST4, REMOTE4, RESOLVER4, SEARCH, Topology, run

WEB = [IMAGE, "httpd", "-f", "-p", "80", "-h", "/www"]
TIMEOUT_S = 60.0
NAME = f"server.{SEARCH}"

_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def topology() -> Iterator[Topology]:
    """In place of the session's, where the session's daemon may have the ports that are published here, too."""
    with Topology("callers") as topology:
        yield topology


@pytest.fixture(scope="module")
def here() -> Path:
    """Programs of this release, which start slirp4netns."""
    return containers.of_this_release()


@pytest.fixture(scope="module")
def there() -> Path:
    """Those of the next release, which start pasta."""
    return containers.of_the_next()


@contextlib.contextmanager
def engine(topology: Topology, directory: Path, usr: Path) -> Iterator[Engine]:
    """A user with these programs, and with ours."""
    (pasta,), (slirp4netns,) = namespace_program(), slirp4netns_program()
    own = daemon_directory(directory, f"engine{next(_numbers)}")
    helpers = {"pasta": Path(pasta), "slirp4netns": Path(slirp4netns)}
    with Engine(topology.host, usr, own, helpers) as started:
        yield started


def answering(page: bytes) -> servers.Handler:
    """A web server with one page."""

    def answer(connection: socket.socket) -> None:
        connection.recv(4096)
        connection.sendall(b"HTTP/1.0 200 OK\r\n\r\n" + page)

    return answer


@pytest.fixture(scope="module")
def web(topology: Topology) -> Iterator[servers.Served]:
    """A server on the remote machine, whose name the resolver there knows; it says "hello"."""

    records = servers.resolver({NAME: (REMOTE4, "2001:db8:2::2")})
    with (
        servers.tcp_server(topology.remote, REMOTE4, answering(b"hello\n")) as server,
        servers.udp_server(topology.remote, RESOLVER4, records, port=53),
    ):
        yield server


def page_from(topology: Topology, port: int, address: str = HOST4) -> bytes:
    """What a web server at the host's port says to the remote machine."""
    with topology.remote.socket(socket.AF_INET, socket.SOCK_STREAM) as connection:
        connection.settimeout(TIMEOUT_S)
        connection.connect((address, port))
        connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
        return servers.receive_all(connection)


def fetch(server: servers.Served, address: str = REMOTE4) -> str:
    """A shell command that asks a server; a static program resolves no names, and is to know of no proxy."""
    return f"env -i {busybox()} wget -q -O - http://{address}:{server.port}/"


def is_resolved(said_by_nslookup: str) -> bool:
    """Whether it has found the server's address."""
    return re.search(rf"Name:\s+{NAME}\nAddress: {REMOTE4}\n", said_by_nslookup) is not None


def options_of(user: Engine) -> list[str]:
    """What the one helper that runs was called with (it has a second process for the namespace)."""
    calls = {tuple(words) for words in user.helpers().values()}
    (words,) = calls
    return list(words)


PODMAN = [
    pytest.param("here", ["--network=slirp4netns"], id="4.3-slirp4netns"),
    pytest.param("here", ["--network=slirp4netns:port_handler=slirp4netns"], id="4.3-slirp4netns-ports"),
    pytest.param("there", ["--network=pasta"], id="5.4-pasta"),
]


@pytest.mark.parametrize(("release", "network"), PODMAN)
def test_podman(
    request: pytest.FixtureRequest,
    topology: Topology,
    directory: Path,
    web: servers.Served,
    release: str,
    network: list[str],
) -> None:
    """A container asks a resolver and a server, another serves a published port; nothing is left when they end."""
    network = ["--cgroups=disabled", *network]
    with engine(topology, directory, request.getfixturevalue(release)) as user:
        user.import_image()
        ask = f"cat /etc/hosts; nslookup {NAME}; wget -q -O - http://{REMOTE4}:{web.port}/"
        said = user.run("podman", "run", "--rm", *network, IMAGE, "sh", "-c", ask)
        assert is_resolved(said)
        assert said.endswith("\nhello\n")
        if "--network=pasta" in network:
            assert re.search(r"^169\.254\.1\.2\s.*\bhost\.containers\.internal\b", said, re.MULTILINE)
        wait_for(lambda: not user.helpers(), "the end of the container's network")

        user.run("podman", "run", "--detach", "--name=web", "--publish=8080:80", *network, *WEB)
        wait_for(lambda: _is_page(topology, 8080, PAGE), "the container's page")
        words = options_of(user)
        if "--network=pasta" in network:
            assert [word for word in words if not word.startswith("/")] == [
                *("--config-net", "-t", "8080-8080:80-80", "--dns-forward", "169.254.1.1", "-u", "none"),
                *("-T", "none", "-U", "none", "--no-map-gw", "--quiet", "--netns", "--map-guest-addr", "169.254.1.2"),
            ]
        else:
            assert {"--enable-sandbox", "--enable-seccomp", "--enable-ipv6", "--netns-type=path", "-e", "-r"} < {*words}
            assert ("--api-socket" in words) == ("port_handler" in network[1])
        user.run("podman", "rm", "--force", "--time=0", "web")
        wait_for(lambda: not user.helpers(), "the end of the container's network")
        wait_for(lambda: _is_refused(topology, 8080), "the end of the published port")


ROOTLESSKIT = [
    pytest.param("here", ["--net=slirp4netns", "--port-driver=slirp4netns"], id="1.1-slirp4netns"),
    pytest.param("there", ["--net=pasta", "--port-driver=implicit"], id="2.0-pasta"),
]


@pytest.mark.parametrize(("release", "network"), ROOTLESSKIT)
def test_rootlesskit(
    request: pytest.FixtureRequest,
    topology: Topology,
    directory: Path,
    web: servers.Served,
    release: str,
    network: list[str],
) -> None:
    """It makes and configures the tap itself; ports are told by the API socket, or found (`--tcp-ports=auto`)."""
    is_pasta = "--net=pasta" in network
    page = f"mkdir ~/www && echo hello >~/www/index.html && exec {busybox()} httpd -f -p 8080 -h ~/www"
    ask = f"until {fetch(web)}; do sleep 0.1; done"
    options = ["--mtu=65520", "--disable-host-loopback", "--state-dir=/run/user/rootlesskit"]
    if not is_pasta:
        options.append("--publish=0.0.0.0:8080:8080/tcp")
    with (
        engine(topology, directory, request.getfixturevalue(release)) as user,
        running(user, "rootlesskit", *network, *options, "sh", "-c", f"{ask}; {page}") as process,
    ):
        wait_for(lambda: _is_page(topology, 8080) or process.poll() is not None, "the page")
        assert process.poll() is None
        words = [word for word in options_of(user) if not word.isdecimal()]
        if is_pasta:
            assert {"--ns-ifname=tap0", "--address=10.0.2.100", "--tcp-ports=auto", "--no-map-gw"} < {*words}
        else:
            assert {"--mtu", "--disable-host-loopback", "--api-socket", "tap0"} < {*words}
        user.run("sh", "-c", "kill $(cat /run/user/rootlesskit/child_pid)")
        process.wait(TIMEOUT_S)
        wait_for(lambda: not user.helpers(), "the end of RootlessKit's network")


def _is_page(topology: Topology, port: int, page: bytes = b"hello\n") -> bool:
    with contextlib.suppress(OSError):
        return page_from(topology, port).endswith(page)
    return False


def _is_refused(topology: Topology, port: int) -> bool:
    with contextlib.suppress(ConnectionResetError):
        try:
            page_from(topology, port)
        except ConnectionRefusedError:
            return True
    return False


AS_PODMAN_DOES = """
set -e
touch "$XDG_RUNTIME_DIR/netns"
unshare --net="$XDG_RUNTIME_DIR/netns" true
pasta --config-net --dns-forward 169.254.1.1 -t none -u none -T none -U none --no-map-gw --quiet \\
    --netns "$XDG_RUNTIME_DIR/netns" --map-guest-addr 169.254.1.2
nsenter --net="$XDG_RUNTIME_DIR/netns" sh -c "$1"
umount "$XDG_RUNTIME_DIR/netns"
rm "$XDG_RUNTIME_DIR/netns"
"""
"""Within its user namespace, in which the user is root: all of it is there when the program returns."""


def test_the_list_of_podman(topology: Topology, directory: Path, web: servers.Served, here: Path) -> None:
    """By hand: the program is all that is between. The host's own address is found at --map-guest-addr."""
    with (
        engine(topology, directory, here) as user,
        servers.tcp_server(topology.host, HOST4, answering(b"the host\n")) as server,
    ):
        ask = f"ip -o addr; {busybox()} nslookup {NAME} 169.254.1.1; {fetch(web)}; {fetch(server, '169.254.1.2')}"
        said = user.run("unshare", "--user", "--map-root-user", "--mount", "sh", "-c", AS_PODMAN_DOES, "sh", ask)
        wait_for(lambda: not user.helpers(), "the end of the program")
    assert f" inet {HOST4}/24 " in said
    assert is_resolved(said)
    assert said.endswith("\nhello\nthe host\n")


def test_the_list_of_rootlesskit(topology: Topology, directory: Path, web: servers.Served) -> None:
    """As newer ones have it: the program configures the tap, and returns then; it ends with the namespace's process."""
    own = daemon_directory(directory, f"listed{next(_numbers)}")
    pid_file = own / "pid"
    (own / "index.html").write_text("hello\n")
    with tun.open_to_everybody(), Unprivileged(topology.host.enter_unprivileged()) as guest:
        arguments = [
            *("--stderr", "--ns-ifname=tap0", "--mtu=65520", "--config-net", "--address=10.0.2.100", "--netmask=24"),
            *("--gateway=10.0.2.2", "--dns-forward=10.0.2.3", "--no-map-gw", "--tcp-ports=auto", "--udp-ports=auto"),
            *("--pid", str(pid_file), str(guest.process_id)),
        ]
        started(topology, [*namespace_program(), *arguments])
        process_id = int(pid_file.read_text())
        assert " inet 10.0.2.100/24 " in run(*guest.enter(), "ip", "-o", "addr", "show", "dev", "tap0")
        assert "mtu 65520 " in run(*guest.enter(), "ip", "link", "show", "dev", "tap0")
        assert run(*guest.enter(), "sh", "-c", fetch(web)) == "hello\n"
        assert is_resolved(run(*guest.enter(), busybox(), "nslookup", NAME, "10.0.2.3"))
        server = f"echo ready; exec {busybox()} httpd -f -p 8081 -h {own}"
        with servers.process([*guest.enter(), "sh", "-c", server], b"ready"):
            wait_for(lambda: _is_page(topology, 8081), "a port that was found")
    end_of(process_id)


def test_the_list_of_slirp4netns_callers(topology: Topology, directory: Path, web: servers.Served) -> None:
    """Buildah's, Podman's and RootlessKit's options together; one descriptor says that it is ready, one ends it."""
    socket_path = daemon_directory(directory, f"listed{next(_numbers)}") / "api"
    ready, ready_writer = os.pipe()
    ends, ends_writer = os.pipe()
    with tun.open_to_everybody(), Unprivileged(topology.host.enter_unprivileged()) as guest:
        arguments = [
            *("--configure", "--mtu=65520", "--disable-host-loopback", "--ready-fd", str(ready_writer)),
            *("--exit-fd", str(ends), "--api-socket", str(socket_path), str(guest.process_id), "tap0"),
        ]
        process = subprocess.Popen(
            [*topology.host.enter_unprivileged(), *slirp4netns_program(), *arguments],
            stdin=subprocess.DEVNULL,
            pass_fds=[ready_writer, ends],
        )
        try:
            os.close(ready_writer)
            assert select.select([ready], [], [], TIMEOUT_S)[0]
            assert os.read(ready, 10) == b"1"
            assert " inet 10.0.2.100/24 " in run(*guest.enter(), "ip", "-o", "addr", "show", "dev", "tap0")
            assert run(*guest.enter(), "sh", "-c", fetch(web)) == "hello\n"
            assert is_resolved(run(*guest.enter(), busybox(), "nslookup", NAME, "10.0.2.3"))
            os.close(ends_writer)
            assert process.wait(TIMEOUT_S) == 0
        finally:
            process.kill()
            process.wait()
            os.close(ready)
            os.close(ends)


def started(topology: Topology, command: list[str]) -> None:
    """A program of the user's that goes into the background, when that is done; it has nothing to say against it."""
    result = subprocess.run(
        [*topology.host.enter_unprivileged(), *command],
        cwd="/",
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert result.returncode == 0, result.stderr
