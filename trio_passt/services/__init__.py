"""Request → reply: pure functions that answer what a guest asks at the link (ARP, DHCP, NDP, DHCPv6)."""
