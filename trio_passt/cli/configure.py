"""Options and the host's network → `Config`: everything is decided here, nothing is asked any more."""

from attrs import evolve, frozen

from trio_passt.cli.options import MINIMUM_IPV6_MTU_BYTES, Options
from trio_passt.config import Config
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
    decision = decide(wishes, host)
    config = Config(
        decision.network,
        options.attachment,
        options.forwards,
        one_off=options.one_off,
        foreground=options.foreground,
        pcap=options.pcap,
        pid_file=options.pid_file,
        log_level=options.log_level,
        wishes=wishes,
    )
    return Configured(config, tuple(warnings), decision.notes)
