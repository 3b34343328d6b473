"""The daemon's hand in the namespace: a `Side` whose sockets are made by the agent.

Theory of operation
-------------------
A request is sent, and its answer waited for; nothing else goes on meanwhile.  Sockets without an address are made in
advance, and in batches: each connection between loopback here and there takes one, and to wait for another process
takes longer than all the rest of it.

The agent may be in the power of the guest (see `report`).  It is not waited for again, once it was silent for too long,
until it has answered.  A descriptor of something else than what was asked for is refused; who answers what no agent
says is ended.  Then there are no more sockets of any kind; what is open goes on.
"""

import errno
import logging
import os
import resource
import select
import socket
import time
from collections import deque
from collections.abc import Callable

from attrs import define, field

from trio_passt.config import Protocol
from trio_passt.errors import StartupError
from trio_passt.host.opener import Opener
from trio_passt.host.side import NETLINK_SOCK_DIAG, Socket
from trio_passt.namespace import agent, processes
from trio_passt.namespace.agent import Birth, Diagnostics, Open, ProcNet, Request, Sockets
from trio_passt.namespace.passing import close_all, receive
from trio_passt.namespace.report import MOST_BYTES, Report, nonsense, parse
from trio_passt.namespace.tap_device import is_tap

log = logging.getLogger("trio_passt.namespace")

FIRST_BATCH, LARGEST_BATCH = 8, 64
"""Sockets that are made in advance; each time more are needed, twice as many as the last time."""

WITHIN_S = 2.0
"""An answer takes 0.1 ms, but the machine may be busy."""

NEW_SOCKET_WITHIN_S = 0.5
"""A connection can do without: it goes by the tap."""

MOST_FILE_BYTES = 16 * 1024 * 1024
"""Of /proc/net/tcp: 100,000 sockets."""

_MAC_BYTES = 6
_SILENT = "the process in the namespace does not answer: local connections go by the tap meanwhile"
_PROTOCOL: dict[int, int] = {socket.SOCK_STREAM: socket.IPPROTO_TCP, socket.SOCK_DGRAM: socket.IPPROTO_UDP}


@define(eq=False)
class _Pool:
    """New sockets of one family and kind."""

    family: int
    kind: int
    batch: int = FIRST_BATCH
    ready: deque[Socket] = field(factory=deque)
    is_asked: bool = False
    error: int = 0


@define(eq=False)
class _Asked:
    """A request for so many descriptors that has been sent; its answer goes to the pool, or stays here."""

    count: int = 1
    pool: _Pool | None = None
    answer: Report | None = None
    descriptors: list[int] = field(factory=list)
    nobody_waits: bool = False


class Inside:
    """The network namespace of the guest, as a `host.side.Side`, with its tap."""

    def __init__(self, birth: Birth) -> None:
        """Have it started, and the tap made.  Raises `StartupError`."""
        try:
            self._process, self._connection = agent.start(birth)
        except OSError as error:
            raise StartupError(f"can't start a process for the namespace: {error.strerror}") from error
        self._is_gone = self._is_silent = self._was_silent = False
        self._asked: deque[_Asked] = deque()
        self._pools: dict[tuple[int, int], _Pool] = {}
        try:
            self.mac, self.tap_fd = self._born()
            self._connection.setblocking(False)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End it; open sockets go on."""
        self._is_gone = True
        self._connection.close()
        for pool in self._pools.values():
            while pool.ready:
                pool.ready.popleft().close()
        if self._process:
            processes.end(self._process)
            self._process = 0

    def socket(self, family: int, kind: int) -> Socket:
        """A new one, from those that are ready."""
        pool = self._pools.get((family, kind))
        if pool is None:
            pool = self._pools[family, kind] = _Pool(family, kind)
        ready = pool.ready
        if len(ready) <= pool.batch >> 2:
            self._replenish(pool)
        return ready.popleft()

    def open(self, opener: Opener, port: int) -> Socket:
        """Have it made."""
        kind = socket.SOCK_STREAM if opener.forward.protocol is Protocol.TCP else socket.SOCK_DGRAM
        sock = _socket(self._get(Open(opener, port)), opener.family, kind, _PROTOCOL[kind])
        listens = kind != socket.SOCK_STREAM or sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        if not listens or sock.getsockname()[1] != port:
            sock.close()
            raise nonsense()
        return sock

    def diagnostics(self) -> Socket:
        """Have it made."""
        return _socket(self._get(Diagnostics()), socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_SOCK_DIAG)

    def proc_net(self, name: str) -> bytes:
        """Read it here: whose network such a file tells of is decided when it is opened."""
        with open(self._get(ProcNet(name)), "rb", buffering=0) as file:
            descriptor = file.fileno()
            is_of_proc = os.fstat(descriptor).st_dev == os.stat("/proc").st_dev
            if not is_of_proc or os.readlink(f"/proc/self/fd/{descriptor}") != f"/proc/{self._process}/net/{name}":
                raise nonsense()
            return _read(descriptor)

    def _born(self) -> tuple[bytes, int]:
        try:
            message, descriptors = receive(self._connection, MOST_BYTES, 1)
        except OSError as error:
            raise StartupError(f"the process in the namespace does not answer: {error.strerror}") from error
        if not message:
            status, self._process = processes.status_of(self._process), 0
            raise StartupError(f"the process in the namespace has ended with status {status}")
        try:
            return _tap(parse(message), descriptors)
        except OSError as error:
            close_all(descriptors)
            raise StartupError(f"the process in the namespace has sent no tap: {error.strerror}") from error
        except BaseException:
            close_all(descriptors)
            raise

    def _replenish(self, pool: _Pool) -> None:
        """Have more made in good time; wait for them if there is none any more."""
        if not pool.is_asked:
            pool.is_asked = True
            try:
                self._ask(Sockets(pool.family, pool.kind, pool.batch), _Asked(pool.batch, pool))
            except OSError:
                pool.is_asked = False
                if not pool.ready:
                    raise
                return
            pool.batch = min(2 * pool.batch, _largest_batch())
        self._take_answers()
        if not pool.ready:
            self._wait(lambda: not pool.is_asked, NEW_SOCKET_WITHIN_S)
            if not pool.ready:
                raise OSError(pool.error, os.strerror(pool.error))

    def _get(self, request: Request) -> int:
        """The one descriptor that is asked for."""
        asked = _Asked()
        self._ask(request, asked)
        try:
            self._wait(lambda: asked.answer is not None, WITHIN_S)
        except BaseException:
            asked.nobody_waits = True
            raise
        assert asked.answer is not None
        if not asked.descriptors:
            number = asked.answer.error or errno.EMFILE
            raise OSError(number, os.strerror(number))
        return asked.descriptors.pop()

    def _ask(self, request: Request, asked: _Asked) -> None:
        if self._is_silent:
            self._take_answers()
        if self._is_gone:
            raise _gone()
        if self._is_silent:
            raise _late()
        try:
            self._connection.send(agent.pack(request))
        except ConnectionError:
            self._lose("is gone")
            raise _gone() from None
        self._asked.append(asked)

    def _wait(self, is_there: Callable[[], bool], within_s: float) -> None:
        """Take answers until it is there.  Raises OSError if that takes too long, or will never be."""
        deadline = time.monotonic() + within_s
        while True:
            self._take_answers()
            if is_there():
                return
            if self._is_gone:
                raise _gone()
            if self._is_silent:
                raise _late()
            poll = select.poll()
            poll.register(self._connection, select.POLLIN)
            if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
                self._is_silent = True
                log.log(logging.DEBUG if self._was_silent else logging.WARNING, _SILENT)
                self._was_silent = True

    def _take_answers(self) -> None:
        """Those that are there; they come in the order of the requests."""
        while self._asked:
            try:
                message, descriptors = receive(self._connection, MOST_BYTES, self._asked[0].count)
            except BlockingIOError:
                return
            except OSError:
                message, descriptors = b"", []
            if not message:
                self._lose("is gone")
                return
            try:
                answer = parse(message)
            except OSError:
                close_all(descriptors)
                self._lose("says what it should not, and is ended")
                return
            self._is_silent = False
            self._take(self._asked.popleft(), answer, descriptors)

    def _take(self, asked: _Asked, answer: Report, descriptors: list[int]) -> None:
        """Where we have no descriptors left, the kernel leaves out those that are too many."""
        pool = asked.pool
        if pool is not None:
            pool.is_asked = False
            pool.error = answer.error or errno.EMFILE
            for descriptor in descriptors:
                try:
                    pool.ready.append(_socket(descriptor, pool.family, pool.kind, _PROTOCOL[pool.kind]))
                except OSError as error:
                    pool.error = error.errno or errno.EPROTO
        elif asked.nobody_waits:
            close_all(descriptors)
        else:
            asked.answer = answer
            asked.descriptors = descriptors

    def _lose(self, why: str) -> None:
        if not self._is_gone:
            self._is_gone = True
            log.error("the process in the namespace %s: no new ports in there; local connections go by the tap", why)
            self.close()


def _tap(report: Report, descriptors: list[int]) -> tuple[bytes, int]:
    """Its MAC address and descriptor.  Raises OSError if they are something else, StartupError if there are none."""
    if report.reason is not None:
        raise StartupError(report.reason)
    if not descriptors:
        raise StartupError("no descriptor is left for the tap (see ulimit -n)")
    (descriptor,) = descriptors
    if len(report.data) != _MAC_BYTES or not is_tap(descriptor):
        raise nonsense()
    os.set_blocking(descriptor, False)
    return report.data, descriptor


def _socket(descriptor: int, family: int, kind: int, protocol: int) -> Socket:
    """One of this kind.  Raises OSError if it is another one, or none, and closes it."""
    try:
        sock = socket.socket(fileno=descriptor)
    except OSError:
        os.close(descriptor)
        raise nonsense() from None
    if (sock.family, sock.type, sock.proto) != (family, kind, protocol):
        sock.close()
        raise nonsense()
    sock.setblocking(False)
    return sock


def _read(descriptor: int) -> bytes:
    """A file from its beginning.  Raises OSError if it is too long."""
    content = bytearray()
    while part := os.pread(descriptor, 1 << 16, len(content)):
        content += part
        if len(content) > MOST_FILE_BYTES:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
    return bytes(content)


def _largest_batch() -> int:
    """Less where there are few descriptors: those that are ready are nobody else's."""
    return max(FIRST_BATCH, min(LARGEST_BATCH, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 64))


def _late() -> OSError:
    return TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))


def _gone() -> OSError:
    return OSError(errno.EPIPE, "the process in the namespace is gone")
