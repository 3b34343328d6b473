"""The daemon's hand in the namespace: a `Side` whose sockets are made by the agent."""

import errno
import logging
import os
import pickle
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
from trio_passt.namespace.agent import Answer, Birth, Born, Diagnostics, Open, ProcNet, Request, Sockets
from trio_passt.namespace.passing import receive

log = logging.getLogger("trio_passt.namespace")

FIRST_BATCH, LARGEST_BATCH = 8, 64
"""Sockets that are made in advance; each time more are needed, twice as many as the last time."""

WITHIN_S = 2.0
"""An answer takes 0.1 ms.  A machine that is so busy that it takes longer has other worries than this connection."""

_MAX_MESSAGE_BYTES = 4096
_FLAGS = socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC


@define(eq=False)
class _Pool:
    """New sockets of one family and kind, as descriptors."""

    family: int
    kind: int
    batch: int = FIRST_BATCH
    ready: deque[int] = field(factory=deque)
    is_asked: bool = False
    error: int = 0


@define(eq=False)
class _Asked:
    """A request that has been sent; its answer goes to the pool, or stays here."""

    pool: _Pool | None = None
    answer: Answer | None = None
    descriptors: list[int] = field(factory=list)
    nobody_waits: bool = False


class Inside:
    """The network namespace of the guest, as a `host.side.Side`, with its tap.

    Sockets without an address are made in advance, and in batches: for each connection between loopback here and there
    takes one, and to wait for another process takes longer than all the rest of it.  When the agent has been killed,
    there are no more of any kind; what is open goes on.
    """

    def __init__(self, birth: Birth) -> None:
        """Have it started, and the tap made.  Raises `StartupError`."""
        try:
            self._process, self._connection = agent.start(birth)
        except OSError as error:
            raise StartupError(f"can't start a process for the namespace: {error.strerror}") from error
        self._is_gone = False
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
                os.close(pool.ready.popleft())
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
        return socket.socket(family, kind | _FLAGS, 0, ready.popleft())

    def open(self, opener: Opener, port: int) -> Socket:
        """Have it made."""
        kind = socket.SOCK_STREAM if opener.forward.protocol is Protocol.TCP else socket.SOCK_DGRAM
        return socket.socket(opener.family, kind | _FLAGS, 0, self._get(Open(opener, port)))

    def diagnostics(self) -> Socket:
        """Have it made."""
        descriptor = self._get(Diagnostics())
        return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | _FLAGS, NETLINK_SOCK_DIAG, fileno=descriptor)

    def proc_net(self, name: str) -> bytes:
        """Read it here: whose network such a file tells of is decided when it is opened."""
        with open(self._get(ProcNet(name)), "rb") as file:
            return file.read()

    def _born(self) -> tuple[bytes, int]:
        try:
            message, descriptors = receive(self._connection, _MAX_MESSAGE_BYTES, 1)
        except OSError as error:
            raise StartupError(f"the process in the namespace does not answer: {error.strerror}") from error
        if not message:
            status, self._process = processes.status_of(self._process), 0
            raise StartupError(f"the process in the namespace has ended with status {status}")
        born: Born = pickle.loads(message)
        if born.error is not None:
            raise StartupError(born.error)
        if not descriptors:
            raise StartupError("no descriptor is left for the tap (see ulimit -n)")
        return born.mac, descriptors[0]

    def _replenish(self, pool: _Pool) -> None:
        """Have more made in good time; wait for them if there is none any more."""
        if not pool.is_asked:
            pool.is_asked = True
            try:
                self._ask(Sockets(pool.family, pool.kind, pool.batch), _Asked(pool))
            except OSError:
                pool.is_asked = False
                if not pool.ready:
                    raise
                return
            pool.batch = min(2 * pool.batch, _largest_batch())
        self._take_answers()
        if not pool.ready:
            self._wait(lambda: not pool.is_asked)
            if not pool.ready:
                raise OSError(pool.error, os.strerror(pool.error))

    def _get(self, request: Request) -> int:
        """The one descriptor that is asked for."""
        asked = _Asked()
        self._ask(request, asked)
        try:
            self._wait(lambda: asked.answer is not None)
        except BaseException:
            asked.nobody_waits = True
            raise
        assert asked.answer is not None
        if not asked.descriptors:
            number = asked.answer.error or errno.EMFILE
            raise OSError(number, os.strerror(number))
        return asked.descriptors.pop()

    def _ask(self, request: Request, asked: _Asked) -> None:
        if self._is_gone:
            raise _gone()
        try:
            self._connection.send(pickle.dumps(request))
        except ConnectionError:
            self._lose()
            raise _gone() from None
        self._asked.append(asked)

    def _wait(self, is_there: Callable[[], bool]) -> None:
        """Take answers until it is there.  Raises OSError if that takes too long, or will never be."""
        deadline = time.monotonic() + WITHIN_S
        poll = select.poll()
        poll.register(self._connection, select.POLLIN)
        while True:
            self._take_answers()
            if is_there():
                return
            if self._is_gone:
                raise _gone()
            if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
                raise TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))

    def _take_answers(self) -> None:
        """Those that are there; they come in the order of the requests."""
        while self._asked:
            try:
                message, descriptors = receive(self._connection, _MAX_MESSAGE_BYTES, LARGEST_BATCH)
            except BlockingIOError:
                return
            except OSError:
                message, descriptors = b"", []
            if not message:
                self._lose()
                return
            self._take(self._asked.popleft(), pickle.loads(message), descriptors)

    def _take(self, asked: _Asked, answer: Answer, descriptors: list[int]) -> None:
        """Where we have no descriptors left, the kernel leaves out those that are too many."""
        if asked.pool is not None:
            asked.pool.is_asked = False
            asked.pool.error = answer.error or errno.EMFILE
            asked.pool.ready.extend(descriptors)
        elif asked.nobody_waits:
            for descriptor in descriptors:
                os.close(descriptor)
        else:
            asked.answer = answer
            asked.descriptors = descriptors

    def _lose(self) -> None:
        if not self._is_gone:
            self._is_gone = True
            log.error("the process in the namespace is gone: there are no new local connections or ports in there")
            self.close()


def _largest_batch() -> int:
    """Less where there are few descriptors: those that are ready are nobody else's."""
    return max(FIRST_BATCH, min(LARGEST_BATCH, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 64))


def _gone() -> OSError:
    return OSError(errno.EPIPE, "the process in the namespace is gone")
