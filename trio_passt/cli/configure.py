"""Options and the host's network → `Config`: everything is decided here, nothing is asked any more."""

from collections.abc import Sequence

from attrs import evolve, frozen

from trio_passt.cli.option_table import MINIMUM_IPV6_MTU_BYTES
from trio_passt.cli.options import Options
from trio_passt.config import AutomaticPorts, Binding, Config, Outbound, PortForward, Protocol, Transports, Wishes
from trio_passt.errors import StartupError
from trio_passt.host.guest_network import decide
from trio_passt.host.network import Host


@frozen
class Configured:
    """The configuration, and what is to be said about how it came about."""

    config: Config
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def configure(options: Options, host: Host) -> Configured:
    """Join what was asked for and what was found.  Raises `StartupError` if the guest would get nothing at all."""
    warnings = []
    wishes = options.wishes
    if wishes.ipv6 and 0 < wishes.mtu_bytes < MINIMUM_IPV6_MTU_BYTES:
        warnings.append(f"IPv6 is off: an MTU of {wishes.mtu_bytes} is below the {MINIMUM_IPV6_MTU_BYTES} it needs")
        wishes = evolve(wishes, ipv6=False)
    if not (wishes.ipv4 or wishes.ipv6):
        raise StartupError("neither IPv4 nor IPv6 is left for the guest")
    _require_interfaces(wishes, host)
    decision = decide(wishes, host)
    forwards, left_out = _translated(options.forwards, wishes.transports)
    forwards_to_host, left_out_too = _translated(options.forwards_to_host, wishes.transports)
    config = Config(
        decision.network,
        options.attachment,
        forwards,
        one_off=options.one_off,
        foreground=options.foreground,
        pcap=options.pcap,
        pid_file=options.pid_file,
        log_level=options.log_level,
        wishes=wishes,
        outbound=_outbound(options.outbound, wishes),
        freebind=options.freebind,
        log_file=options.log_file,
        log_size_bytes=options.log_size_bytes,
        run_as=options.run_as,
        namespace=options.namespace,
        forwards_to_host=forwards_to_host,
        automatic=AutomaticPorts(
            _translated(options.automatic.to_guest, wishes.transports)[0],
            _translated(options.automatic.to_host, wishes.transports)[0],
        ),
        binds_later=options.binds_later or bool(options.automatic.to_guest),
    )
    notes = dict.fromkeys((*decision.notes, *left_out, *left_out_too))
    return Configured(config, (*warnings, *decision.warnings), tuple(notes))


def _outbound(outbound: Outbound, wishes: Wishes) -> Outbound:
    """Without what is set for a family that is off."""
    if not wishes.ipv4:
        outbound = evolve(outbound, ipv4_address=None, ipv4_interface=None)
    return outbound if wishes.ipv6 else evolve(outbound, ipv6_address=None, ipv6_interface=None)


def _require_interfaces(wishes: Wishes, host: Host) -> None:
    """Those that are named have to be there at start; one that is down, or has no address yet, may be up later."""
    named = [
        name for name, is_on in ((wishes.interface_ipv4, wishes.ipv4), (wishes.interface_ipv6, wishes.ipv6)) if is_on
    ]
    links = {link.name: link for link in host.links}
    for name in filter(None, named):
        if name not in links:
            known = ", ".join(link.name for link in host.links if not link.loopback) or "none"
            raise StartupError(f"this host has no interface '{name}' (it has: {known})")
        if links[name].loopback:
            raise StartupError(f"a guest can't have the network of '{name}', which is the loopback interface")


def _translated(
    forwards: Sequence[PortForward], transports: Transports
) -> tuple[tuple[PortForward, ...], tuple[str, ...]]:
    """The forwards of transports that are on, and what is to be said about others."""
    off = {protocol for protocol in Protocol if not getattr(transports, protocol.value)}
    named = {forward.protocol for forward in forwards if forward.binding is not Binding.WANTED}
    notes = (
        f"--no-{protocol.value}: {protocol.name} ports are not forwarded"
        for protocol in Protocol
        if protocol in off & named
    )
    return tuple(forward for forward in forwards if forward.protocol not in off), tuple(notes)
