"""DHCP clients as far as scapy can play them: what each asks for, and how it says so.

Written down from the clients' documentation and from captures; what they do with a reply is for the integration
tests, which have real ones.
"""

from __future__ import annotations

from attrs import frozen
from dhcp_setup import BROADCAST_FLAG, ask
from link_setup import GUEST_MAC

MAC_IDENTIFIER = (61, b"\x01" + GUEST_MAC)
DUID_IDENTIFIER = (61, bytes.fromhex("ff56504d98 0002 0000ab11 0123456789abcdef"))
MACHINE = bytes.fromhex("00 6c1d04a2 8f5b 4c27 9d3a 525400123456")

Option = tuple[int, bytes]


@frozen
class Client:
    """`always` are options of each message, `discover` of the first one only.

    `length_bytes`: zeros follow, until the message is so long.
    """

    name: str
    requested: tuple[int, ...] | None
    always: tuple[Option, ...] = ()
    discover: tuple[Option, ...] = ()
    flags: int = 0
    length_bytes: int = 300
    takes_bytes: int = 576
    rapid: bool = False

    def says(self, kind: str, *options: Option, **fields: object) -> bytes:
        """A message of this client; `options` are those that the state it is in demands."""
        own = [*options, *self.always, *(self.discover if kind == "discover" else ())]
        if self.takes_bytes != 576:
            own.append((57, self.takes_bytes.to_bytes(2, "big")))
        if self.requested is not None:
            own.append((55, bytes(self.requested)))
        if self.rapid and kind == "discover":
            own.append((80, b""))
        return ask(kind, *own, **({"flags": self.flags} | fields)).ljust(self.length_bytes, b"\0")


CLIENTS = (
    Client(
        "busybox udhcpc",
        (1, 3, 6, 12, 15, 28, 42),
        always=(MAC_IDENTIFIER, (60, b"udhcp 1.36.1"), (57, b"\x02\x40")),
    ),
    Client("busybox udhcpc -B -O mtu -O search", (1, 3, 6, 12, 15, 26, 28, 42, 119), flags=BROADCAST_FLAG),
    Client(
        "ISC dhclient",
        (1, 28, 2, 3, 15, 6, 119, 12, 44, 47, 26, 121, 42),
        always=((12, b"debian"),),
        discover=((50, bytes((10, 0, 2, 15))),),
    ),
    Client(
        "dhcpcd",
        (1, 121, 33, 3, 6, 12, 15, 26, 28, 42, 51, 54, 58, 59, 119),
        always=(
            DUID_IDENTIFIER,
            (60, b"dhcpcd-10.0.6:Linux-6.8.0:x86_64:GenuineIntel"),
            (145, b"\x01"),
            (81, b"\x04\x00\x00\x06debian"),
        ),
        takes_bytes=1472,
        rapid=True,
    ),
    Client(
        "systemd-networkd",
        (1, 3, 12, 15, 6, 33, 120, 119, 121, 26, 42),
        always=(DUID_IDENTIFIER, (12, b"fedora")),
        takes_bytes=1472,
    ),
    Client("systemd-networkd, Anonymize=yes", (1, 3, 6, 15, 31, 33, 43, 44, 46, 47, 119, 121, 249, 252)),
    Client(
        "NetworkManager",
        (1, 2, 6, 12, 15, 26, 28, 121, 3, 33, 40, 41, 42, 119, 249, 252, 17),
        always=(MAC_IDENTIFIER, (12, b"fedora")),
        takes_bytes=576,
        length_bytes=0,
    ),
    Client(
        "Linux, ip=dhcp",
        (1, 3, 6, 12, 15, 17, 26, 40, 42),
        always=((60, b"Linux"),),
        length_bytes=548,
    ),
    Client("klibc ipconfig", (1, 3, 6, 12, 15, 17, 26, 28, 42), always=((60, b"Linux ipconfig"),), takes_bytes=1500),
    Client(
        "Windows",
        (1, 3, 6, 15, 31, 33, 43, 44, 46, 47, 119, 121, 249, 252),
        always=(MAC_IDENTIFIER, (12, b"DESKTOP-1"), (60, b"MSFT 5.0"), (81, b"\x00\x00\x00DESKTOP-1")),
        discover=((116, b"\x01"), (50, bytes((169, 254, 17, 3)))),
        flags=BROADCAST_FLAG,
    ),
    Client("Windows 98", (1, 3, 15, 6, 44, 46, 47), always=(MAC_IDENTIFIER, (12, b"PC\0"))),
    Client(
        "macOS",
        (1, 121, 3, 6, 15, 108, 114, 119, 252, 95, 44, 46),
        always=(MAC_IDENTIFIER, (51, (7776000).to_bytes(4, "big")), (12, b"macbook")),
        takes_bytes=1500,
    ),
    Client(
        "Android",
        (1, 3, 6, 15, 26, 28, 51, 58, 59, 43, 114, 108),
        always=(MAC_IDENTIFIER, (60, b"android-dhcp-14"), (12, b"Pixel")),
        takes_bytes=1500,
        rapid=True,
        length_bytes=0,
    ),
    Client(
        "iPXE",
        (1, 3, 6, 7, 12, 15, 17, 26, 43, 60, 66, 67, 119, 128, 129, 130, 131, 132, 133, 134, 135, 175, 203),
        always=(
            (93, b"\x00\x00"),
            (94, b"\x01\x02\x01"),
            (60, b"PXEClient:Arch:00000:UNDI:002001"),
            (77, b"iPXE"),
            (175, b"\xb1\x05\x01\x1a\xf4\x10\x41\x18\x01\x01"),
            MAC_IDENTIFIER,
            (97, MACHINE),
        ),
        takes_bytes=1472,
    ),
    Client(
        "UEFI PXE",
        (1, 2, 3, 4, 5, 6, 12, 13, 15, 17, 18, 22, 23, 28, 40, 41, 42, 43, 50, 51, 54, 58, 59, 60, 66, 67, 97),
        always=((97, MACHINE), (94, b"\x01\x03\x00"), (93, b"\x00\x07"), (60, b"PXEClient:Arch:00007:UNDI:003000")),
        takes_bytes=1472,
        flags=BROADCAST_FLAG,
        length_bytes=347,
    ),
    Client("U-Boot", (1, 3, 6, 12, 17, 66, 67), always=((60, b"U-Boot.armv8"),), takes_bytes=576, length_bytes=312),
    Client("lwIP", (1, 3, 28, 6), takes_bytes=1500, length_bytes=308),
    Client("one that asks for nothing", None, length_bytes=0),
    Client("one that asks for everything", tuple(range(255)), always=((254, b"x"),)),
    Client("one that asks for everything, twice", (*range(127), *range(126, -1, -1))),
)
