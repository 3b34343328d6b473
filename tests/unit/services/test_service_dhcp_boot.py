"""Plain BOOTP (RFC 951, RFC 1534), and what a guest boots from the network (PXE, iPXE)."""

from ipaddress import IPv4Address, ip_address

import pytest
from attrs import evolve
from dhcp_setup import (
    ACK,
    BOOT,
    GATEWAY_OFF_LINK,
    NAMED,
    XID,
    answer,
    ask,
    options_of,
    reboot,
    renew,
    reply_to,
    select,
    told,
)
from link_setup import GUEST_MAC, NETWORK
from scapy.layers.dhcp import BOOTP
from scapy.layers.inet import IP
from scapy.packet import Packet

from trio_passt.config import GuestNetwork, HostAddress, NetworkBoot, Resolvers
from trio_passt.wire import domain

WITHOUT_COOKIE = bytes(BOOTP(op=1, xid=XID, chaddr=GUEST_MAC)) + bytes(64)
MANY_NAMES = tuple(f"{'x' * 20}-{index}.example{index}.com" for index in range(6))
MANY_SERVERS = tuple(IPv4Address(f"192.0.2.{200 + index}") for index in range(20))
FILE = b"pxe/ipxe.efi"
SERVER_NAME = b"boot.example.com"
MACHINE = b"\x00" + bytes(range(16))


def boot_fields(reply: Packet) -> tuple[str, bytes, bytes]:
    return reply[BOOTP].siaddr, reply[BOOTP].file.rstrip(b"\0"), reply[BOOTP].sname.rstrip(b"\0")


@pytest.mark.parametrize(
    ("mappings", "server"),
    [
        ((), "192.0.2.1"),
        ((("2001:db8::77", "::1"), ("192.0.2.78", "192.0.2.5")), "192.0.2.1"),
        ((("192.0.2.78", "192.0.2.5"), ("192.0.2.77", "127.0.0.1")), "192.0.2.77"),
    ],
)
def test_server_is_the_host_where_the_guest_reaches_it(mappings: tuple[tuple[str, str], ...], server: str) -> None:
    addresses = tuple(HostAddress(ip_address(seen), ip_address(on_host)) for seen, on_host in mappings)
    network = evolve(NETWORK, boot=NetworkBoot("ipxe.efi"), host_addresses=addresses)
    assert boot_fields(reply_to(ask("discover"), network)) == (server, b"ipxe.efi", b"")


class TestBootp:
    @pytest.mark.parametrize("payload", [ask(None), WITHOUT_COOKIE, bytes(BOOTP(op=1, xid=XID, chaddr=GUEST_MAC))])
    def test_gets_an_address_and_extensions(self, payload: bytes) -> None:
        reply = reply_to(payload)
        assert (reply[BOOTP].yiaddr, reply[IP].dst) == ("192.0.2.5", "192.0.2.5")
        assert len(reply[BOOTP]) == 300
        assert list(options_of(reply))[:4] == ["subnet_mask", "router", "name_server", "interface-mtu"]
        assert not {51, 53, 54, 58, 59} & told(reply).keys()

    def test_who_has_an_address_keeps_it(self) -> None:
        """RFC 951 section 3: yiaddr is for clients whose ciaddr was zero."""
        reply = reply_to(ask(None, ciaddr="192.0.2.77"))
        assert (reply[BOOTP].ciaddr, reply[BOOTP].yiaddr, reply[IP].dst) == ("192.0.2.77", "0.0.0.0", "192.0.2.77")

    def test_fields_never_hold_options(self) -> None:
        reply = reply_to(ask(None), evolve(NETWORK, resolvers=Resolvers(search=MANY_NAMES)))
        assert (reply[BOOTP].file, reply[BOOTP].sname) == (bytes(128), bytes(64))

    def test_what_has_room_is_told(self) -> None:
        network = evolve(NAMED, ipv4=GATEWAY_OFF_LINK.ipv4, resolvers=Resolvers(MANY_SERVERS, search=MANY_NAMES))
        options = told(reply_to(ask(None), network))
        assert options.keys() >= {1, 3, 6, 26, 121}
        assert options[6] == b"".join(server.packed for server in MANY_SERVERS[:3])
        short = evolve(NETWORK, resolvers=Resolvers(search=("a.example", *MANY_NAMES)))
        assert told(reply_to(ask(None), short)).keys() == {1, 3, 26, 15, 119}
        assert told(reply_to(ask(None), short))[119] == domain.emit("a.example")

    def test_boots(self) -> None:
        for payload in (ask(None), WITHOUT_COOKIE, ask(None, ciaddr="192.0.2.77")):
            assert boot_fields(reply_to(payload, BOOT)) == ("192.0.2.69", FILE, SERVER_NAME)

    @pytest.mark.parametrize(
        ("network", "name", "answered"),
        [
            (BOOT, b"boot.example.com", True),
            (BOOT, b"BOOT.example.com", True),
            (BOOT, b"another.example.com", False),
            (NETWORK, b"another.example.com", False),
            (evolve(NETWORK, boot=NetworkBoot("ipxe.efi")), b"another.example.com", False),
        ],
    )
    def test_who_wants_a_certain_server(self, network: GuestNetwork, name: bytes, answered: bool) -> None:
        """RFC 951 section 7.3: a server of another name does not answer."""
        assert (answer(ask(None, sname=name), network) is not None) is answered
        assert answer(ask("discover", sname=b"whatever"), network) is not None, "no such rule in DHCP"


class TestBoot:
    def test_nothing_to_boot(self) -> None:
        reply = reply_to(ask("discover", ("param_req_list", [66, 67, 1])))
        assert boot_fields(reply) == ("0.0.0.0", b"", b"")
        assert not {66, 67} & told(reply).keys()

    @pytest.mark.parametrize(
        "payload",
        [ask("discover"), select("192.0.2.5", "192.0.2.1"), reboot("192.0.2.5"), renew("192.0.2.5"), ask("inform")],
    )
    def test_header_says_what_and_from_where(self, payload: bytes) -> None:
        reply = reply_to(payload, BOOT)
        assert boot_fields(reply) == ("192.0.2.69", FILE, SERVER_NAME)
        assert not {66, 67} & told(reply).keys()

    def test_options_for_who_lists_them(self) -> None:
        reply = reply_to(ask("discover", ("param_req_list", [67, 1, 66])), BOOT)
        assert boot_fields(reply) == ("192.0.2.69", FILE, SERVER_NAME)
        assert (options_of(reply)["boot-file-name"], options_of(reply)["tftp_server_name"]) == (FILE, SERVER_NAME)
        assert list(told(reply)) == [53, 54, 51, 58, 59, 67, 1, 66]

    def test_the_gateway_is_the_server_unless_another_is_named(self) -> None:
        network = evolve(NETWORK, boot=NetworkBoot("undionly.kpxe"))
        reply = reply_to(ask("discover", ("param_req_list", [66, 67])), network)
        assert boot_fields(reply) == ("192.0.2.1", b"undionly.kpxe", b"")
        assert told(reply)[67] == b"undionly.kpxe"
        assert 66 not in told(reply)

    def test_longest_names(self) -> None:
        network = evolve(NETWORK, boot=NetworkBoot("f" * 127, "s" * 63))
        assert boot_fields(reply_to(ask("discover"), network))[1:] == (b"f" * 127, b"s" * 63)
        assert boot_fields(reply_to(ask(None), network))[1:] == (b"f" * 127, b"s" * 63)

    def test_names_make_way_for_options(self) -> None:
        """RFC 2132 sections 9.4, 9.5: where the fields hold options, the names are options, asked for or not."""
        search = ("engineering.example.com", "marketing.example.org", "y" * 60 + ".net")
        network = evolve(BOOT, resolvers=evolve(NETWORK.resolvers, search=search))
        reply = reply_to(ask("discover", ("client_id", b"i" * 150), ("param_req_list", [1, 3, 6, 119])), network)
        options = told(reply)
        assert reply[IP].len <= 576
        assert (reply[BOOTP].siaddr, reply[BOOTP].file[0]) == ("192.0.2.69", 119)
        assert (options[67], options[66], domain.parse_list(options[119])) == (FILE, SERVER_NAME, search)

    def test_server_name_alone_stays_where_the_file_field_suffices(self) -> None:
        search = ("engineering.example.com", "marketing.example.org", "y" * 60 + ".net")
        boot = NetworkBoot("", "boot")
        network = evolve(NETWORK, boot=boot, resolvers=evolve(NETWORK.resolvers, search=search))
        reply = reply_to(ask("discover", ("client_id", b"i" * 150), ("param_req_list", [1, 3, 6, 67, 119])), network)
        assert (reply[BOOTP].file[0], reply[BOOTP].sname.rstrip(b"\0")) == (119, b"boot")
        assert not {66, 67} & told(reply).keys()

    @pytest.mark.parametrize("mtu_bytes", [68, 328, 400, 576])
    @pytest.mark.parametrize("file", ["ipxe.efi", "f" * 127])
    def test_boots_in_little_room(self, mtu_bytes: int, file: str) -> None:
        """Nothing of what takes a guest online, or boots it, is lost for names."""
        resolvers = Resolvers(MANY_SERVERS[:2], search=MANY_NAMES)
        network = evolve(NAMED, boot=NetworkBoot(file, "s" * 40), mtu_bytes=mtu_bytes, resolvers=resolvers)
        wishes = ("param_req_list", [119, 15, 12, 81, 66, 67, 1, 3, 6, 26])
        reply = reply_to(ask("discover", wishes), network)
        options = told(reply)
        assert options.keys() >= {53, 54, 51, 1, 3, 6, 26}
        assert file.encode() in (options.get(67), boot_fields(reply)[1])

    @pytest.mark.parametrize(("sent", "returned"), [(b"HTTPClient:Arch:00016", b"HTTPClient"), (b"PXEClient", None)])
    def test_firmware_that_boots_by_http_wants_its_own_class_back(self, sent: bytes, returned: bytes | None) -> None:
        """UEFI 2.10, section 24.7.3.1."""
        reply = reply_to(ask("discover", ("vendor_class_id", sent)), BOOT)
        assert told(reply).get(60) == returned
        assert 60 not in told(reply_to(ask("discover", ("vendor_class_id", sent))))

    def test_client_machine_identifier_is_returned(self) -> None:
        """RFC 4578 section 2.3: in all packets, by clients and servers."""
        option = ("pxe_client_machine_identifier", MACHINE)
        for payload in (ask("discover", option), reboot("192.0.2.5", option), reboot("192.0.2.6", option)):
            assert told(reply_to(payload, BOOT))[97] == MACHINE
        assert told(reply_to(reboot("192.0.2.5", option), BOOT))[53] == ACK
        assert 97 not in told(reply_to(ask("discover", (97, b"m" * 255), (97, b"m"))))
