"""A look at the host: its links, addresses, default routes, and resolv.conf."""

import logging
import os
from collections.abc import Callable
from pathlib import Path

from trio_passt.errors import StartupError
from trio_passt.host import apart
from trio_passt.host.network import Address, DefaultRoute, Host, Link
from trio_passt.host.resolv import ResolvConf, parse_resolv_conf

RESOLV_CONF = Path("/etc/resolv.conf")

MOST_READ_BYTES = 65536
"""Of resolv.conf; the C library looks at three nameservers and six domains."""

log = logging.getLogger("trio_passt.host")

_Network = tuple[list[Link], list[Address], list[DefaultRoute]]


def discover(resolv_conf: Path = RESOLV_CONF, *, become: Callable[[], None] | None = None) -> Host:
    """Look, in the caller's network namespace, before Trio runs.

    The process that looks calls `become` first.  Raises `StartupError` where there is no netlink to ask, or no process
    to be had, and what `become` raises.
    """

    def look() -> _Network:
        if become is not None:
            become()
        return _read_network()

    try:
        network = apart.in_child(look)
    except (OSError, RuntimeError) as error:
        raise StartupError(f"can't look at the host's network: {error}") from error
    return _host(network, resolv_conf)


async def discover_again(resolv_conf: Path = RESOLV_CONF) -> Host:
    """Look while the daemon's tasks go on.  Raises what `discover` does, OSError and RuntimeError."""
    return _host(await apart.while_others_run(_read_network), resolv_conf)


def _read_network() -> _Network:
    """Whatever goes wrong in there is no reason for a daemon to end: the program may be upgraded while it runs."""
    try:
        from trio_passt.host.netlink import read_host_network

        return read_host_network()
    except StartupError:
        raise
    except Exception as error:
        raise StartupError(f"can't read the host's interfaces and routes: {error!r}") from error


def _host(network: _Network, resolv_conf: Path) -> Host:
    links, addresses, routes = network
    return Host(tuple(links), tuple(addresses), tuple(routes), read_resolv_conf(resolv_conf))


def read_resolv_conf(path: Path) -> ResolvConf:
    """What the file says; an absent one is as an empty one, and so, with a warning, is one that can't be read.

    It is never waited for: it may be a FIFO.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
        try:
            data = os.read(descriptor, MOST_READ_BYTES)
        finally:
            os.close(descriptor)
        return parse_resolv_conf(data.decode("utf-8", "replace"))
    except OSError as error:
        if not isinstance(error, FileNotFoundError):
            log.warning("can't read %s: %s", path, error.strerror)
        return ResolvConf()
