"""A look at the host: its links, addresses, default routes, and resolv.conf."""

import logging
from pathlib import Path

from trio_passt.host import apart
from trio_passt.host.network import Address, DefaultRoute, Host, Link
from trio_passt.host.resolv import ResolvConf, parse_resolv_conf

RESOLV_CONF = Path("/etc/resolv.conf")

log = logging.getLogger("trio_passt.host")

_Network = tuple[list[Link], list[Address], list[DefaultRoute]]


def discover(resolv_conf: Path = RESOLV_CONF) -> Host:
    """Look, in the caller's network namespace, before Trio runs.

    Raises `StartupError` where there is no netlink to ask.
    """
    return _host(apart.in_child(_read_network), resolv_conf)


async def discover_again(resolv_conf: Path = RESOLV_CONF) -> Host:
    """Look while the daemon's tasks go on.  Raises what `discover` does, OSError and RuntimeError."""
    return _host(await apart.while_others_run(_read_network), resolv_conf)


def _read_network() -> _Network:
    from trio_passt.host.netlink import read_host_network

    return read_host_network()


def _host(network: _Network, resolv_conf: Path) -> Host:
    links, addresses, routes = network
    return Host(tuple(links), tuple(addresses), tuple(routes), read_resolv_conf(resolv_conf))


def read_resolv_conf(path: Path) -> ResolvConf:
    """What the file says; an absent one is as an empty one, and so, with a warning, is one that can't be read."""
    try:
        return parse_resolv_conf(path.read_text("utf-8", "replace"))
    except OSError as error:
        if not isinstance(error, FileNotFoundError):
            log.warning("can't read %s: %s", path, error.strerror)
        return ResolvConf()
