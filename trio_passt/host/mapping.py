"""The address that reaches the host's loopback, by the operator's wishes; for those who go by it and for `decide`."""

from trio_passt.config import GuestIPv4, GuestIPv6, IPAddress, Wishes


def of_family(addresses: tuple[IPAddress, ...], version: int) -> IPAddress | None:
    """The first of `addresses` that is of this IP version."""
    return next((address for address in addresses if address.version == version), None)


def loopback_address(guest: GuestIPv4 | GuestIPv6, wishes: Wishes) -> IPAddress | None:
    """What reaches the host's loopback in this family: the address that was wished for, else the gateway's.

    Unless that is to reach the host's own address (`--map-guest-addr`).
    """
    wished = of_family(wishes.loopback_addresses, guest.address.version)
    is_gateway = wishes.maps_gateway and guest.gateway not in wishes.own_addresses
    return wished or (guest.gateway if is_gateway else None)
