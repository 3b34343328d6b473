"""The ports that the kernel gives to whoever does not ask for a certain one."""

from pathlib import Path

USUAL = range(32768, 61000)
"""ip(7): the default of ip_local_port_range, 32768 to 60999."""

_SYSCTL = Path("/proc/sys/net/ipv4/ip_local_port_range")


def ephemeral_ports(sysctl: Path = _SYSCTL) -> range:
    """net.ipv4.ip_local_port_range, which holds for both families; the usual one if it can't be read."""
    try:
        first, last = map(int, sysctl.read_text().split())
    except (OSError, ValueError):
        return USUAL
    return range(first, last + 1)
