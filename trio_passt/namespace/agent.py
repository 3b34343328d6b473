"""The process that stays in the guest's network namespace: it makes the tap, and sockets, for the daemon outside.

Theory of operation
-------------------
A socket belongs to the network namespace of the process that makes it, for as long as it lives and whoever has it.  So
the daemon has them made by a small process in there, and gets their descriptors through a UNIX socket (SCM_RIGHTS of
unix(7)); it never changes its own namespaces.  Each request is one message, answered by one message, in order.  The
process ends when the daemon does: then its end of the connection is closed.

Of its privileges it keeps only what it takes to bind ports below 1024 in there.  Where we are root, it stays out of a
user namespace that is the guest's, over which root has power from outside: in there it could not become the user that
the daemon becomes (it has no number there), and would have root's files still.

Requests are JSON: the daemon talks to a network, and shall not be able to have more done here than this.
"""

import errno
import fcntl
import json
import os
import socket
import struct
from contextlib import ExitStack, suppress
from ipaddress import ip_address

from attrs import frozen

from trio_passt.config import PortForward, Protocol, RunAs
from trio_passt.errors import StartupError
from trio_passt.host import identity
from trio_passt.host.libc import call
from trio_passt.host.opener import Opener
from trio_passt.host.side import Here
from trio_passt.namespace import processes
from trio_passt.namespace.enter import CLONE_NEWNET, Namespaces
from trio_passt.namespace.passing import send
from trio_passt.namespace.report import Report
from trio_passt.namespace.tap_device import open_tap

MAX_REQUEST_BYTES = 16384

_SIOCGIFFLAGS, _SIOCSIFFLAGS, _SIOCSIFHWADDR, _SIOCGIFHWADDR = 0x8913, 0x8914, 0x8924, 0x8927
_IFF_UP = 0x1
_ARPHRD_ETHER = 1
_IFREQ_BYTES = 40


@frozen
class Birth:
    """What the process does before it answers requests: join `namespaces`, make the tap, become `run_as`."""

    namespaces: Namespaces
    interface: str
    mac: bytes | None
    run_as: RunAs | None


@frozen
class Sockets:
    """A request for as many new sockets."""

    family: int
    kind: int
    count: int


@frozen
class Open:
    """A request for what `opener` makes of `port`."""

    opener: Opener
    port: int


@frozen
class Diagnostics:
    """A request for a socket for sock_diag(7)."""


@frozen
class ProcNet:
    """A request for the file /proc/net/NAME."""

    name: str


Request = Sockets | Open | Diagnostics | ProcNet


def pack(request: Request) -> bytes:
    """As it is sent."""
    words: list[str | int | None]
    match request:
        case Sockets(family, kind, count):
            words = ["sockets", family, kind, count]
        case Open(opener, port):
            forward = opener.forward
            address = str(forward.address) if forward.address is not None else None
            words = ["open", opener.family, forward.protocol.value, port, address, forward.interface]
            words += [opener.freebind, opener.on_loopback]
        case Diagnostics():
            words = ["diagnostics"]
        case ProcNet(name):
            words = ["proc", name]
    return json.dumps(words).encode()


def unpack(message: bytes) -> Request:
    """What was sent.  Raises ValueError."""
    match json.loads(message):
        case ["sockets", int(family), int(kind), int(count)]:
            return Sockets(family, kind, count)
        case ["open", int(family), str(protocol), int(port), address, interface, bool(freebind), bool(on_loopback)]:
            where = ip_address(str(address)) if address is not None else None
            of = str(interface) if interface is not None else None
            forward = PortForward(Protocol(protocol), port, port, port, where, of)
            opener = Opener(forward, socket.AddressFamily(family), freebind=freebind, on_loopback=on_loopback)
            return Open(opener, port)
        case ["diagnostics"]:
            return Diagnostics()
        case ["proc", str(name)] if name.replace("_", "").isalnum():
            return ProcNet(name)
        case _:
            raise ValueError("no request")


def start(birth: Birth) -> tuple[int, socket.socket]:
    """Fork the process; its process ID, and the connection to it.  Raises OSError.

    On that, a `Report` comes with the tap's MAC address and descriptor, or why there is none; and one to each request,
    with descriptors, fewer than asked for if there is an error.
    """
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        process = processes.fork(lambda: _live(its, birth), its.fileno(), *birth.namespaces.descriptors)
    except BaseException:
        ours.close()
        raise
    finally:
        its.close()
    return process, ours


def _live(daemon: socket.socket, birth: Birth) -> int:
    processes.without_standard_descriptors()
    processes.be_dumpable(is_dumpable=False)  # before anybody in there can see it
    try:
        is_as_we_are = _join(birth)
        birth.namespaces.close()
        _bring_up("lo")
        tap = open_tap(birth.interface)
        if birth.mac is not None:
            _set_mac(birth.interface, birth.mac)
        mac = _mac(birth.interface)
        _give_up_privileges(birth.run_as if is_as_we_are else None)
        send(daemon, Report(mac).packed(), [tap])
    except StartupError as error:
        daemon.send(Report(reason=str(error)).packed())
        return 1
    except OSError as error:
        daemon.send(Report(reason=f"can't set up the namespace: {error.strerror or error}").packed())
        return 1
    os.close(tap)
    while request := _next(daemon):
        _answer(daemon, request)
    return 0


def _next(daemon: socket.socket) -> Request | None:
    """None: the daemon is gone."""
    with suppress(ConnectionError):
        message = daemon.recv(MAX_REQUEST_BYTES)
        return unpack(message) if message else None
    return None


def _join(birth: Birth) -> bool:
    """Whether we are in the daemon's user namespace still.  Raises StartupError."""
    if birth.run_as is not None:
        with suppress(OSError):  # root of a container may have power only in namespaces of its own
            call("setns", birth.namespaces.net, CLONE_NEWNET)
            return True
    birth.namespaces.join()
    return birth.namespaces.user is None


def _answer(daemon: socket.socket, request: Request) -> None:
    with ExitStack() as opened:
        descriptors: list[int] = []
        number = 0
        try:
            _open(request, opened, descriptors)
        except OSError as error:
            number = error.errno or errno.EIO
        try:
            socket.send_fds(daemon, [Report(error=number).packed()], descriptors)
        except ConnectionError:
            return
        except OSError as error:  # too many are on their way: unix(7), ETOOMANYREFS
            with suppress(ConnectionError):
                daemon.send(Report(error=error.errno or errno.EIO).packed())


def _open(request: Request, opened: ExitStack, descriptors: list[int]) -> None:
    """What is asked for; `descriptors` has what could be had when OSError is raised."""
    match request:
        case Sockets(family, kind, count):
            for _ in range(count):
                descriptors.append(opened.enter_context(Here().socket(family, kind)).fileno())
        case Open(opener, port):
            descriptors.append(opened.enter_context(opener.open(port)).fileno())
        case Diagnostics():
            descriptors.append(opened.enter_context(Here().diagnostics()).fileno())
        case ProcNet(name):
            descriptor = os.open(f"/proc/self/net/{name}", os.O_RDONLY | os.O_CLOEXEC)
            opened.callback(os.close, descriptor)
            descriptors.append(descriptor)


def _bring_up(interface: str) -> None:
    """If it is down: netdevice(7).  That it may not be done is no reason to give up: the tap may be there for us."""
    with suppress(OSError):
        request = bytearray(_interface(interface, b""))
        _ioctl(_SIOCGIFFLAGS, request)
        (flags,) = struct.unpack_from("=H", request, 16)
        if not flags & _IFF_UP:
            struct.pack_into("=H", request, 16, flags | _IFF_UP)
            _ioctl(_SIOCSIFFLAGS, request)


def _set_mac(interface: str, mac: bytes) -> None:
    try:
        _ioctl(_SIOCSIFHWADDR, bytearray(_interface(interface, struct.pack("=H", _ARPHRD_ETHER) + mac)))
    except OSError as error:
        raise StartupError(f"can't give {interface} the MAC address {mac.hex(':')}: {error.strerror}") from error


def _mac(interface: str) -> bytes:
    request = bytearray(_interface(interface, b""))
    _ioctl(_SIOCGIFHWADDR, request)
    return bytes(request[18:24])


def _interface(name: str, value: bytes) -> bytes:
    """`struct ifreq`: a name of 16 bytes, and a union."""
    return (os.fsencode(name).ljust(16, b"\0") + value).ljust(_IFREQ_BYTES, b"\0")


def _ioctl(number: int, request: bytearray) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as any_socket:
        fcntl.ioctl(any_socket, number, request)


def _give_up_privileges(run_as: RunAs | None) -> None:
    """Also root's powers over files, where we may become somebody else."""
    if run_as is not None:
        identity.become(run_as, keeps_capabilities=True)
    identity.give_up_capabilities(but_binding=True)
    identity.gain_no_more()
    processes.be_dumpable(is_dumpable=False)
    processes.die_with_parent()  # it may be stopped, and never see the end of the connection
