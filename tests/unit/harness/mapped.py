"""Addresses that stand for the host, as they usually do."""

from ipaddress import IPv4Address, IPv6Address

from attrs import evolve

from trio_passt.config import GuestIPv4, GuestIPv6, GuestNetwork, HostAddress

LOOPBACK = {4: IPv4Address("127.0.0.1"), 6: IPv6Address("::1")}


def gateways_of(ipv4: GuestIPv4 | None, ipv6: GuestIPv6 | None) -> tuple[HostAddress, ...]:
    """The gateways' addresses, for the host's loopback."""
    gateways = [guest.gateway for guest in (ipv4, ipv6) if guest]
    return tuple(HostAddress(gateway, LOOPBACK[gateway.version]) for gateway in gateways)


def gateways_mapped(network: GuestNetwork) -> GuestNetwork:
    """The same network, in which the gateways' addresses stand for the host's loopback, and no others."""
    return evolve(network, host_addresses=gateways_of(network.ipv4, network.ipv6))
