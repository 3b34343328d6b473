"""ICMP and ICMPv6 echo: one task for each pair of guest identifier and remote."""
