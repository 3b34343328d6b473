"""User-mode networking for virtual machines: Ethernet frames to host sockets, one Trio task per flow.

Start reading at `trio_passt.daemon` (the whole program, from the top), then `trio_passt.tcp.flow` (a connection's
life).  `docs/architecture.md` is the map.
"""

__version__ = "0.1.0"
