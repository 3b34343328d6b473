"""Options and the host's network → `Config`: everything is decided here, nothing is asked any more."""

from attrs import frozen

from trio_passt.cli.options import MINIMUM_IPV6_MTU_BYTES, Options
from trio_passt.config import Config, GuestNetwork
from trio_passt.errors import StartupError
from trio_passt.host.network import Address, DefaultRoute, Link, choose
from trio_passt.host.resolv import ResolvConf, resolvers_for_guest


@frozen
class Host:
    """What was found on the host."""

    links: tuple[Link, ...] = ()
    addresses: tuple[Address, ...] = ()
    routes: tuple[DefaultRoute, ...] = ()
    resolv_conf: ResolvConf = ResolvConf()  # noqa: RUF009 - a frozen value


@frozen
class Configured:
    """The configuration, and what is to be said about how it came about."""

    config: Config
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def configure(options: Options, host: Host) -> Configured:
    """Join what was asked for and what was found.  Raises `StartupError` if the guest would get nothing at all."""
    warnings = []
    ipv6 = options.ipv6
    if ipv6 and 0 < options.mtu_bytes < MINIMUM_IPV6_MTU_BYTES:
        warnings.append(f"IPv6 is off: an MTU of {options.mtu_bytes} is below the {MINIMUM_IPV6_MTU_BYTES} it needs")
        ipv6 = False
    if not (options.ipv4 or ipv6):
        raise StartupError("neither IPv4 nor IPv6 is left for the guest")
    found = choose(host.links, host.addresses, host.routes, ipv4=options.ipv4, ipv6=ipv6)
    names = resolvers_for_guest(host.resolv_conf, found.ipv4, found.ipv6)
    notes = list(found.notes)
    if not (names.resolvers.ipv4 or names.resolvers.ipv6):
        notes.append("no nameserver of /etc/resolv.conf is one that the guest can use: it is told none")
    network = GuestNetwork(found.ipv4, found.ipv6, names.resolvers, options.mtu_bytes, dns_forwards=names.forwards)
    config = Config(
        network,
        options.attachment,
        options.forwards,
        one_off=options.one_off,
        foreground=options.foreground,
        pcap=options.pcap,
        pid_file=options.pid_file,
        log_level=options.log_level,
    )
    return Configured(config, tuple(warnings), tuple(notes))
