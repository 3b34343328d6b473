"""libvirt itself: a user's session daemon starts a machine whose network is our program, which it finds as `passt`.

The version is that of Debian's backports (tests/guest/libvirt.py); the machine is the other tests' guest.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import shutil
import signal
import socket
import stat
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

from tests.guest import libvirt
from tests.guest.image import Image
from tests.guest.machine import KERNEL_ARGUMENTS, Guest
from tests.integration import servers
from tests.integration.caller import END_TIMEOUT_S, end_of
from tests.integration.changing_host import wait_for
from tests.integration.daemon import daemon_directory, program
from tests.integration.topology import (
    GATEWAY4,
    HOST4,
    HOST6,
    REMOTE4,
    REMOTE6,
    UNPRIVILEGED_ID,
    Namespace,
    Topology,
)

SET_UP = """
set -e
mount -t overlay -o "lowerdir=$1:/usr" overlay /usr
for file in passwd group; do mount --bind "$2/$file" /etc/$file; done
shift 2
exec "$@"
"""
"""In a mount namespace: libvirt's files appear in /usr, and the user gets a name, which libvirt wants to know."""

START_TIMEOUT_S = 60.0
COMMAND_TIMEOUT_S = 120.0
GUEST4, GUEST6 = "192.0.2.9", "2001:db8:1::9"

DOMAIN = f"""
<domain type='qemu'>
  <name>guest</name>
  <memory unit='MiB'>512</memory>
  <os>
    <type arch='x86_64'>hvm</type>
    <kernel>{{kernel}}</kernel>
    <initrd>{{initramfs}}</initrd>
    <cmdline>{KERNEL_ARGUMENTS}</cmdline>
  </os>
  <cpu mode='maximum'/>
  <features><acpi/><apic/></features>
  <devices>
    <serial type='file'><source path='{{directory}}/console'/></serial>
    <channel type='unix'>
      <source mode='bind' path='{{directory}}/control'/>
      <target type='virtio' name='control'/>
    </channel>
    <rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>
    <memballoon model='none'/>
    <interface type='user'>
      <backend type='passt' logFile='{{directory}}/passt.log'/>
      <source dev='uplink'/>
      <mac address='52:54:00:12:34:56'/>
      <ip family='ipv4' address='{GUEST4}' prefix='24'/>
      <ip family='ipv6' address='{GUEST6}'/>
      <portForward proto='tcp' address='{HOST4}'>
        <range start='4022' to='22'/>
        <range start='4080' end='4089' to='9080'/>
        <range start='4084' end='4085' exclude='yes'/>
      </portForward>
      <portForward proto='tcp' address='{HOST6}' dev='uplink'><range start='4022' to='22'/></portForward>
      <portForward proto='udp'><range start='4053'/></portForward>
      <model type='virtio'/>
    </interface>
  </devices>
</domain>
"""


class Session:
    """A session daemon of libvirt, as an ordinary user in the host's namespace; a context manager that ends it."""

    def __init__(self, host: Namespace, directory: Path) -> None:
        self.directory = directory
        self._host = host
        self._environment = {
            "HOME": str(directory),
            "LC_ALL": "C",
            "PATH": f"{directory}/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "XDG_CACHE_HOME": f"{directory}/cache",
            "XDG_CONFIG_HOME": f"{directory}/config",
            "XDG_DATA_HOME": f"{directory}/data",
            "XDG_RUNTIME_DIR": str(directory),
        }

    @property
    def daemons(self) -> Path:
        """Where it has sockets and PID files of its passts."""
        return self.directory / "libvirt/qemu/run/passt"

    def virsh(self, *arguments: str) -> str:
        """Output of virsh; `AssertionError` with what it says if it fails."""
        result = subprocess.run(
            [
                *("nsenter", "--target", str(self._process.pid), "--mount", "--net", "--wdns=/"),
                *self._as_user("virsh", "--quiet", "--connect", "qemu:///session", *arguments),
            ],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=COMMAND_TIMEOUT_S,
            check=False,
        )
        assert result.returncode == 0, result.stderr
        return result.stdout

    def log(self) -> str:
        """What libvirt and QEMU have said."""
        files = [self.directory / "libvirtd.log", *self.directory.glob("cache/libvirt/qemu/log/*.log")]
        return "\n".join(path.read_text(errors="replace") for path in files if path.exists())

    def __enter__(self) -> Self:
        self._prepare()
        command = [
            *("setpriv", "--pdeathsig=KILL", "--", *self._host.enter(), "unshare", "--mount"),
            *("sh", "-c", SET_UP, "sh", str(libvirt.build()), str(self.directory)),
            *self._as_user("libvirtd"),
        ]
        with (self.directory / "libvirtd.log").open("wb") as log:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        deadline = time.monotonic() + START_TIMEOUT_S
        while not (self.directory / "libvirt/libvirt-sock").exists():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.__exit__(None, None, None)
                raise AssertionError(f"libvirt does not start: {self.log()}")
            time.sleep(0.02)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._process.terminate()
        try:
            self._process.wait(END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for process_id in self.process_ids():  # machines, which outlive it, and their networks
            with contextlib.suppress(ProcessLookupError):
                os.kill(process_id, signal.SIGKILL)

    def process_ids(self) -> list[int]:
        """Of the processes in the host's namespace that were started with a path in the session's directory."""
        found = []
        for process_id in self._host.process_ids():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                if os.fsencode(self.directory) in Path(f"/proc/{process_id}/cmdline").read_bytes():
                    found.append(process_id)
        return found

    def _prepare(self) -> None:
        for name, line in (
            ("passwd", f"tester:x:{UNPRIVILEGED_ID}:{UNPRIVILEGED_ID}::{self.directory}:/bin/sh\n"),
            ("group", f"tester:x:{UNPRIVILEGED_ID}:\n"),
        ):
            (self.directory / name).write_text(Path("/etc", name).read_text() + line)
        (self.directory / "config/libvirt").mkdir(parents=True)
        (self.directory / "config/libvirt/qemu.conf").write_text('stdio_handler = "file"\n')  # needs no virtlogd
        (self.directory / "bin").mkdir()
        (under_test,) = program()
        (self.directory / "bin/passt").symlink_to(under_test)
        for path in self.directory.rglob("*"):
            os.chown(path, UNPRIVILEGED_ID, UNPRIVILEGED_ID, follow_symlinks=False)

    def _as_user(self, *command: str) -> list[str]:
        return [
            *("setpriv", f"--reuid={UNPRIVILEGED_ID}", f"--regid={UNPRIVILEGED_ID}", "--clear-groups"),
            *("--inh-caps=-all", "--bounding-set=-all", "--no-new-privs", "--pdeathsig=KILL", "--"),
            *("env", "-i", *(f"{name}={value}" for name, value in self._environment.items()), *command),
        ]


class Domain(Guest):
    """A guest whose QEMU is libvirt's."""

    def __init__(self, session: Session, image: Image) -> None:
        directory = session.directory
        self._session = session
        self.console_log, self._control_path = directory / "console", directory / "control"
        self.errors_log = directory / "cache/libvirt/qemu/log/guest.log"
        self._channel = None
        self._xml = directory / "guest.xml"
        paths = {"kernel": image.kernel, "initramfs": image.initramfs, "directory": directory}
        self._xml.write_text(DOMAIN.format_map(paths))
        session.virsh("create", str(self._xml))

    def kill(self) -> None:
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        if "guest" in self._session.virsh("list", "--name").split():
            self._session.virsh("destroy", "guest")


@pytest.fixture
def session(topology: Topology, directory: Path) -> Iterator[Session]:
    """A daemon, and a new user's configuration: none."""
    own = daemon_directory(directory, "libvirt")
    with Session(topology.host, own) as session:
        yield session
    shutil.rmtree(own)


def test_a_machine_of_libvirts(session: Session, topology: Topology, image: Image) -> None:
    with topology.host.socket(socket.AF_INET, socket.SOCK_STREAM) as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind((HOST4, 4022))
        taken.listen()
        with pytest.raises(AssertionError, match="4022"):  # the user is told which port it is
            Domain(session, image)
        assert not list(session.daemons.iterdir())
    with Domain(session, image) as guest:
        process_id = _assert_as_replayed(session)
        guest.boot()
        guest.check("online")
        _assert_configured(guest)
        for address in (REMOTE4, REMOTE6):
            with servers.tcp_server(topology.remote, address, servers.echo_after_end) as server:
                assert guest.check(f"echo there and back | socat -t 60 - TCP:{server.socat}") == "there and back\n"
        _assert_forwarded(guest, topology)
        guest.kill()
        end_of(process_id)
    assert not list(session.daemons.iterdir())
    wait_for(lambda: not session.process_ids(), "the end of all its processes")
    assert "guest" in (session.directory / "passt.log").read_text()


def _assert_as_replayed(session: Session) -> int:
    """The list is the one that test_callers.py has; the daemon's process ID."""
    (pid_file,) = session.daemons.glob("*.pid")
    (socket_path,) = session.daemons.glob("*.socket")
    process_id = int(pid_file.read_text())
    _python, _passt, *arguments = Path(f"/proc/{process_id}/cmdline").read_text().removesuffix("\0").split("\0")
    assert arguments == [
        *("--one-off", "--socket", str(socket_path), "--pid", str(pid_file)),
        *("--interface", "uplink", "--log-file", f"{session.directory}/passt.log"),
        *("--address", GUEST4, "--netmask", "24", "--address", GUEST6),
        *("--tcp-ports", f"{HOST4}/4022:22,4080-4089:9080-9089,~4084-4085"),
        *("--tcp-ports", f"{HOST6}%uplink/4022:22", "--udp-ports", "4053"),
    ]
    assert stat.S_IMODE(pid_file.stat().st_mode) == 0o600
    assert {path.stat().st_uid for path in (pid_file, socket_path)} == {UNPRIVILEGED_ID}
    return process_id


def _assert_configured(guest: Guest) -> None:
    told = guest.check("cat /run/udhcpc.bound").splitlines()
    assert {f"ip={GUEST4}", "mask=24", f"router={GATEWAY4}"} <= set(told)
    assert f"inet6 {GUEST6}/" in guest.check("ip -6 addr show dev eth0 scope global")


def _assert_forwarded(guest: Guest, topology: Topology) -> None:
    for family, client, server, host_port, guest_port in (
        (4, REMOTE4, HOST4, 4022, 22),
        (6, REMOTE6, HOST6, 4022, 22),
        (4, REMOTE4, HOST4, 4089, 9089),
    ):
        listening = f"socat TCP{family}-LISTEN:{guest_port},reuseaddr,fork 'SYSTEM:echo $SOCAT_PEERADDR'"
        with (
            servers.guest_service(guest, guest_port, listening),
            topology.remote.socket(servers.family(server), socket.SOCK_STREAM) as connection,
        ):
            connection.bind((client, 0))
            connection.connect((server, host_port))
            seen = servers.receive_all(connection).decode().strip("[]\n")
            assert ipaddress.ip_address(seen) == ipaddress.ip_address(client)
    with (
        topology.remote.socket(socket.AF_INET, socket.SOCK_STREAM) as connection,
        pytest.raises(ConnectionRefusedError),
    ):
        connection.connect((HOST4, 4084))
