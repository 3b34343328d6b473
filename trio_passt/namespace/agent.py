"""The process that stays in the guest's network namespace: it makes the tap, and sockets, for the daemon outside.

Theory of operation
-------------------
A socket belongs to the network namespace of the process that makes it, for as long as it lives and whoever has it.  So
the daemon has them made by a small process in there, and gets their descriptors through a UNIX socket (SCM_RIGHTS of
unix(7)); it never changes its own namespaces.  Each request is one message, answered by one message, in order.  The
process ends when the daemon does: then its end of the connection is closed.

Of its privileges it keeps only what it takes to bind ports below 1024 in there.
"""

import errno
import fcntl
import os
import pickle
import socket
import struct
from contextlib import ExitStack, suppress

from attrs import frozen

from trio_passt.config import RunAs
from trio_passt.errors import StartupError
from trio_passt.host.libc import call
from trio_passt.host.opener import Opener
from trio_passt.host.side import Here
from trio_passt.namespace import processes
from trio_passt.namespace.enter import Namespaces
from trio_passt.namespace.tap_device import open_tap

MAX_REQUEST_BYTES = 16384

_SIOCGIFFLAGS, _SIOCSIFFLAGS, _SIOCSIFHWADDR, _SIOCGIFHWADDR = 0x8913, 0x8914, 0x8924, 0x8927
_IFF_UP = 0x1
_ARPHRD_ETHER = 1
_IFREQ_BYTES = 40

_PR_SET_KEEPCAPS, _PR_SET_NO_NEW_PRIVS = 8, 38
_CAPABILITY_VERSION_3 = 0x20080522
_CAP_NET_BIND_SERVICE = 1 << 10


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


@frozen
class Born:
    """The first message: the tap's MAC address, with its descriptor; or why there is no tap."""

    mac: bytes = b""
    error: str | None = None


@frozen
class Answer:
    """To a request, with `count` descriptors; fewer than asked for, for the reason of `error`, an errno."""

    count: int
    error: int = 0


def start(birth: Birth) -> tuple[int, socket.socket]:
    """Fork the process; its process ID, and the connection to it, on which a `Born` will come.  Raises OSError."""
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        kept = [its.fileno(), birth.namespaces.net]
        if birth.namespaces.user is not None:
            kept.append(birth.namespaces.user)
        process = processes.fork(lambda: _live(its, birth), *kept)
    except BaseException:
        ours.close()
        raise
    finally:
        its.close()
    return process, ours


def _live(daemon: socket.socket, birth: Birth) -> int:
    processes.without_standard_descriptors()
    try:
        birth.namespaces.join()
        birth.namespaces.close()
        _bring_up("lo")
        tap = open_tap(birth.interface)
        if birth.mac is not None:
            _set_mac(birth.interface, birth.mac)
        mac = _mac(birth.interface)
        _give_up_privileges(birth)
    except StartupError as error:
        daemon.send(pickle.dumps(Born(error=str(error))))
        return 1
    except OSError as error:
        daemon.send(pickle.dumps(Born(error=f"can't set up the namespace: {error.strerror or error}")))
        return 1
    socket.send_fds(daemon, [pickle.dumps(Born(mac))], [tap])
    os.close(tap)
    while request := _next(daemon):
        _answer(daemon, request)
    return 0


def _next(daemon: socket.socket) -> Request | None:
    """None: the daemon is gone."""
    with suppress(ConnectionError):
        message = daemon.recv(MAX_REQUEST_BYTES)
        return pickle.loads(message) if message else None
    return None


def _answer(daemon: socket.socket, request: Request) -> None:
    with ExitStack() as opened:
        descriptors: list[int] = []
        number = 0
        try:
            _open(request, opened, descriptors)
        except OSError as error:
            number = error.errno or errno.EIO
        message = pickle.dumps(Answer(len(descriptors), number))
        try:
            socket.send_fds(daemon, [message], descriptors)
        except ConnectionError:
            return
        except OSError as error:  # too many are on their way: unix(7), ETOOMANYREFS
            with suppress(ConnectionError):
                daemon.send(pickle.dumps(Answer(0, error.errno or errno.EIO)))


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


def _give_up_privileges(birth: Birth) -> None:
    """Where the namespace is owned by our own user namespace, root's other powers, those over files, go too."""
    if birth.run_as is not None and birth.namespaces.user is None:
        call("prctl", _PR_SET_KEEPCAPS, 1, 0, 0, 0)
        os.setgroups([])
        os.setresgid(birth.run_as.gid, birth.run_as.gid, birth.run_as.gid)
        os.setresuid(birth.run_as.uid, birth.run_as.uid, birth.run_as.uid)
    header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
    kept = struct.pack("=IIIIII", _CAP_NET_BIND_SERVICE, _CAP_NET_BIND_SERVICE, 0, 0, 0, 0)
    try:
        call("capset", header, kept)
    except PermissionError:  # we do not have it
        call("capset", header, bytes(24))
    call("prctl", _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
