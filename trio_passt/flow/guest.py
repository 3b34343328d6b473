"""What is learned about the guest from its frames: its MAC address and the addresses it uses."""

from trio_passt.config import GuestNetwork
from trio_passt.wire.ethernet import BROADCAST, is_multicast
from trio_passt.wire.ipv6 import is_link_local


class Guest:
    """One guest's own addresses, packed: at first those it was assigned, then those it was last seen to use.

    A guest may have another address than the one that it was offered; link-local and global ones are learned apart.
    """

    __slots__ = ("_global_ipv6", "_ipv4", "_link_local", "_offered_ipv6", "_reserved", "mac")

    def __init__(self, network: GuestNetwork) -> None:
        self.mac = BROADCAST
        self._ipv4 = network.ipv4.address.packed if network.ipv4 else None
        self._global_ipv6 = self._offered_ipv6 = network.ipv6.address.packed if network.ipv6 else None
        self._link_local: bytes | None = None
        self._reserved = {bytes(4), b"\xff" * 4, bytes(16)}
        self._reserve(network)

    def assign(self, network: GuestNetwork) -> None:
        """It is offered other addresses now.  One that has spoken keeps those that it has until it uses others."""
        if network.ipv4 and (self._ipv4 is None or not self.is_known):
            self._ipv4 = network.ipv4.address.packed
        if network.ipv6 and (self._global_ipv6 is None or not self.is_known):
            self._global_ipv6 = self._offered_ipv6 = network.ipv6.address.packed
        self._reserve(network)

    def _reserve(self, network: GuestNetwork) -> None:
        """The gateways' addresses are ours, and those that stand for the host: no packet from there is one of the
        guest's, unless it is its own now.
        """
        guests = [guest for guest in (network.ipv4, network.ipv6) if guest]
        self._reserved |= {guest.gateway.packed for guest in guests}
        self._reserved |= {mapping.seen_by_guest.packed for mapping in network.host_addresses}
        for guest in guests:
            self._reserved -= {guest.address.packed, *[other.ip.packed for other in guest.others]}

    @property
    def addresses(self) -> list[bytes]:
        """Those that are known, packed."""
        return [address for address in (self._ipv4, self._global_ipv6, self._link_local) if address is not None]

    @property
    def is_known(self) -> bool:
        """Whether the guest has spoken, so that its MAC address is known."""
        return self.mac != BROADCAST

    def learn_mac(self, mac: bytes) -> None:
        """A frame came from `mac`."""
        if mac != self.mac and not is_multicast(mac) and any(mac):
            self.mac = mac

    def learn_address(self, source: bytes) -> None:
        """A packet came from the packed address `source`; ours, unspecified and group addresses teach nothing."""
        if source in (self._ipv4, self._global_ipv6, self._link_local) or source in self._reserved:
            return
        if len(source) == 4:
            if source[0] < 224 and source[0] not in (0, 127):
                self._ipv4 = source
        elif is_link_local(source):
            self._link_local = source
        elif source[0] != 0xFF and any(source[:15]):
            self._global_ipv6 = source

    def learn_claim(self, address: bytes) -> None:
        """It asks whether anybody else has this IPv6 address, and so will have it: duplicate address detection.

        Until it has spoken from a global address, that is a better guess than the one that it was offered.
        """
        if is_link_local(address) or self._global_ipv6 == self._offered_ipv6:
            self.learn_address(address)

    def address_towards(self, remote: bytes) -> bytes | None:
        """Where to send packets that come from `remote`; `None` if that family is off.

        A link-local sender is answered from a link-local address, so the guest is addressed by its own if it is known.
        """
        if len(remote) == 4:
            return self._ipv4
        if is_link_local(remote) and self._link_local is not None:
            return self._link_local
        return self._global_ipv6
