"""The process that sets up the tap's addresses and routes (`--config-net`), and then ends, with what it imported.

It begins before there is a tap, on the host's side, where it reads what is to be copied; meanwhile the rest goes on.
"""

import os
import socket
from contextlib import suppress

from trio_passt.config import Config
from trio_passt.errors import StartupError
from trio_passt.namespace import processes
from trio_passt.namespace.enter import Namespaces
from trio_passt.namespace.passing import receive, send
from trio_passt.namespace.report import MOST_BYTES, Report, parse

_MAC_BYTES = 6


class Configurator:
    """It waits for `configure`, and then does so."""

    def __init__(self, config: Config) -> None:
        """Have it started.  Raises `StartupError`."""
        try:
            self._connection, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        except OSError as error:
            raise StartupError(f"can't configure the namespace: {error.strerror}") from error
        try:
            with its:
                self._process = processes.fork(lambda: _live(its, config), its.fileno())
        except OSError as error:
            self._connection.close()
            raise StartupError(f"can't configure the namespace: {error.strerror}") from error

    def configure(self, namespaces: Namespaces, interface: str, mac: bytes) -> None:
        """Have it do so; `finish` tells whether it has.  Raises `StartupError`."""
        try:
            send(self._connection, mac + os.fsencode(interface), namespaces.descriptors)
        except ConnectionError:
            pass  # it has ended, and may have said why
        except OSError as error:
            raise StartupError(f"can't configure the namespace: {error.strerror}") from error

    def finish(self) -> None:
        """Wait for its end.  Raises `StartupError`."""
        try:
            answer = self._connection.recv(MOST_BYTES)
        except OSError:
            answer = b""
        if not answer:
            status, self._process = processes.status_of(self._process), 0
            raise StartupError(f"the process that configures the namespace has ended with status {status}")
        try:
            reason = parse(answer).reason
        except OSError as error:
            raise StartupError(f"can't configure the namespace: {error.strerror}") from error
        if reason is not None:
            raise StartupError(reason)

    def close(self) -> None:
        """It ends, if it has not."""
        self._connection.close()
        if self._process:
            processes.end(self._process)
            self._process = 0


def _live(connection: socket.socket, config: Config) -> int:
    reason = None
    processes.be_dumpable(is_dumpable=False)
    try:
        from trio_passt.namespace.template import read_templates

        templates = read_templates(config.network)
        message, descriptors = receive(connection, 4096, 2)
        if not message:
            return 1
        mac, interface = message[:_MAC_BYTES], os.fsdecode(message[_MAC_BYTES:])
        Namespaces(descriptors[0], descriptors[1] if descriptors[1:] else None).join()

        from trio_passt.namespace.apply import apply
        from trio_passt.namespace.setup import plan

        apply(plan(config, mac, templates), interface)
    except StartupError as error:
        reason = str(error)
    except Exception as error:  # a broken installation, for one
        reason = f"can't configure the namespace: {error!r}"
    with suppress(ConnectionError):
        connection.send(Report(reason=reason).packed())
    return 0
