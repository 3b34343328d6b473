"""What a client is told about its network: what it asked for, in its order, as far as there is room."""

from ipaddress import IPv4Address

import pytest
from attrs import evolve
from dhcp_setup import GATEWAY_OFF_LINK, NAMED, ROUTES, ask, options_of, renew, reply_to, told
from link_setup import NETWORK
from scapy.layers.dhcp import BOOTP
from scapy.layers.inet import IP

from trio_passt.config import GuestNetwork, Resolvers
from trio_passt.wire import domain

LEASE_OPTIONS = [53, 54, 51, 58, 59]
MANY_NAMES = tuple(f"{'x' * 20}-{index}.example{index}.com" for index in range(20))
MANY_SERVERS = tuple(IPv4Address(f"192.0.2.{200 + index}") for index in range(20))


def wants(*codes: int) -> tuple[str, list[int]]:
    return ("param_req_list", list(codes))


@pytest.mark.parametrize(
    ("requested", "expected"),
    [
        ([3, 1, 6], [1, 3, 6]),
        ([1, 6, 3], [1, 6, 3]),
        ([6, 3, 15, 1], [6, 1, 3, 15]),
        ([3, 6], [3, 6]),
        ([119, 26, 15, 26, 119], [119, 26, 15]),
        ([6], [6]),
        ([42, 44, 252, 0, 255, 6], [6]),
        ([51, 53, 54, 58, 59, 61, 1], [1]),
        ([52, 80, 82, 108, 97, 1], [1]),
        ([42, 44, 252, 0, 255], []),
        ([], []),
        ([121, 249, 3, 12, 81, 66, 67], [3]),
    ],
)
def test_parameters_in_the_order_asked_for(requested: list[int], expected: list[int]) -> None:
    reply = reply_to(ask("discover", wants(*requested)))
    assert list(told(reply)) == LEASE_OPTIONS + expected


class TestRoutes:
    """Options 121 (RFC 3442) and 249 (what Windows asked for before)."""

    @pytest.mark.parametrize(
        ("requested", "expected"),
        [
            ([1, 121, 3], {1, 121, 3}),
            ([1, 249, 3], {1, 249, 3}),
            ([121, 249], {121, 249}),
            ([1, 3], {1, 3}),
        ],
    )
    def test_gateway_off_link(self, requested: list[int], expected: set[int]) -> None:
        options = told(reply_to(ask("discover", wants(*requested)), GATEWAY_OFF_LINK))
        assert options.keys() - {*LEASE_OPTIONS} == expected
        assert {options[code] for code in expected & {121, 249}} <= {ROUTES}

    def test_scapy_reads_them(self) -> None:
        reply = reply_to(ask("discover"), GATEWAY_OFF_LINK)
        assert options_of(reply)["classless_static_routes"] == ["10.0.0.1/32:0.0.0.0", "0.0.0.0/0:10.0.0.1"]

    def test_who_asks_for_nothing_in_particular_gets_the_standards(self) -> None:
        assert {121, 249} & told(reply_to(ask("discover"), GATEWAY_OFF_LINK)).keys() == {121}


class TestNames:
    """Options 12 and 81 (RFC 4702)."""

    def test_host_name(self) -> None:
        for payload in (ask("discover"), ask("discover", wants(12)), renew("192.0.2.5", wants(12))):
            assert told(reply_to(payload, NAMED))[12] == b"guest"
        assert 12 not in told(reply_to(ask("discover", wants(1, 3)), NAMED))
        assert 12 not in told(reply_to(ask("discover", ("hostname", b"mine"))))

    @pytest.mark.parametrize(
        ("sent", "expected"),
        [
            pytest.param(0b0000, b"\x08\xff\xffguest.lab.example.com", id="ASCII"),
            pytest.param(0b0001, b"\x0a\xff\xffguest.lab.example.com", id="ASCII, update for me"),
            pytest.param(0b0100, b"\x0c\xff\xff" + domain.emit("guest.lab.example.com"), id="DNS"),
            pytest.param(0b0101, b"\x0e\xff\xff" + domain.emit("guest.lab.example.com"), id="DNS, update for me"),
            pytest.param(0b1100, b"\x0c\xff\xff" + domain.emit("guest.lab.example.com"), id="DNS, update nothing"),
            pytest.param(0b1000, b"\x08\xff\xffguest.lab.example.com", id="ASCII, update nothing"),
            pytest.param(0b11110111, b"\x0e\xff\xff" + domain.emit("guest.lab.example.com"), id="reserved bits"),
        ],
    )
    def test_client_fqdn(self, sent: int, expected: bytes) -> None:
        """N, since nobody updates DNS here; E as the client has it; O if it wanted S; both RCODEs 255."""
        option = (81, bytes((sent, 0, 0)) + b"mine")
        for payload in (
            ask("discover", option),
            ask("discover", option, wants(1, 3)),
            renew("192.0.2.5", option),
            ask("inform", option, ciaddr="192.0.2.77"),
        ):
            assert told(reply_to(payload, NAMED))[81] == expected

    def test_who_only_lists_it_is_told_it_in_dns_encoding(self) -> None:
        options = told(reply_to(ask("discover", wants(81, 1)), NAMED))
        assert list(options) == [*LEASE_OPTIONS, 81, 1]
        assert options[81] == b"\x0c\xff\xff" + domain.emit("guest.lab.example.com")

    def test_who_sends_it_without_listing_it_is_told_it_last(self) -> None:
        options = told(reply_to(ask("discover", wants(12, 1), (81, b"\x04\0\0")), NAMED))
        assert list(options) == [*LEASE_OPTIONS, 12, 1, 81]

    def test_who_neither_sends_nor_lists_it_is_not_told(self) -> None:
        assert 81 not in told(reply_to(ask("discover"), NAMED))
        assert 81 not in told(reply_to(ask("discover", wants(12, 15)), NAMED))

    def test_nothing_to_tell(self) -> None:
        assert not {12, 81} & told(reply_to(ask("discover", wants(12, 81), (81, b"\x05\0\0mine")))).keys()

    @pytest.mark.parametrize("sent", [b"", b"\x01", b"\x01\x00"])
    def test_malformed_one_prevents_no_lease(self, sent: bytes) -> None:
        assert 81 not in told(reply_to(ask("discover", (81, sent)), NAMED))
        listed = told(reply_to(ask("discover", (81, sent), wants(81)), NAMED))
        assert listed[81] == b"\x0c\xff\xff" + domain.emit("guest.lab.example.com")

    @pytest.mark.parametrize("name", ["", "gäst", "a b", "x" * 64, "a..b"])
    def test_names_that_dns_cannot_write_are_not_told(self, name: str) -> None:
        network = evolve(NETWORK, hostname=name, fqdn=name)
        assert list(told(reply_to(ask("discover", wants(1, 12, 81)), network))) == [*LEASE_OPTIONS, 1]


class TestSearchList:
    """Options 15 and 119 (RFC 3397)."""

    def test_compressed(self) -> None:
        value = told(reply_to(ask("discover")))[119]
        assert value == b"\x03lab\x07example\x03com\x00" + b"\xc0\x04"

    def test_names_that_dns_cannot_write_are_left_out(self) -> None:
        network = evolve(NETWORK, resolvers=Resolvers(search=("ä.example", "good.example.")))
        options = told(reply_to(ask("discover"), network))
        assert (options[15], options[119]) == (b"good.example", domain.emit("good.example"))

    def test_without_names(self) -> None:
        network = evolve(NETWORK, resolvers=Resolvers())
        assert not {6, 15, 119} & told(reply_to(ask("discover"), network)).keys()

    @pytest.mark.parametrize("limit", [576, 700, 1500])
    def test_as_many_names_as_fit_are_told(self, limit: int) -> None:
        network = evolve(NETWORK, resolvers=evolve(NETWORK.resolvers, search=MANY_NAMES))
        reply = reply_to(ask("discover", ("max_dhcp_size", limit)), network)
        names = domain.parse_list(told(reply)[119])
        assert reply[IP].len <= limit
        assert names == MANY_NAMES[: len(names)]
        one_more = domain.emit_compressed(MANY_NAMES[: len(names) + 1])
        assert len(names) == 20 or reply[IP].len + len(one_more) - len(told(reply)[119]) > limit

    def test_longer_than_255_bytes_it_is_split(self) -> None:
        """RFC 3396, by scapy: two parts, one after the other."""
        network = evolve(NETWORK, resolvers=Resolvers(search=MANY_NAMES))
        reply = reply_to(ask("discover", wants(119), ("max_dhcp_size", 1500)), network)
        parts = [option[1] for option in reply[BOOTP].payload.options if option[0] == 119]
        assert [len(part) for part in parts][:-1] == [255] * (len(parts) - 1)
        assert domain.parse_list(b"".join(parts)) == MANY_NAMES

    def test_field_of_its_own(self) -> None:
        """At 576 bytes it has no room among the options, but whole it has in the file field."""
        names = ("engineering.example.com", "marketing.example.org", "y" * 60 + ".net")
        network = evolve(NETWORK, resolvers=evolve(NETWORK.resolvers, search=names))
        reply = reply_to(ask("discover", ("client_id", b"i" * 120), ("vendor_class_id", b"x")), network)
        assert reply[IP].len <= 576
        assert reply[BOOTP].file[0] == 119
        assert domain.parse_list(told(reply)[119]) == names
        roomy = reply_to(ask("discover", ("client_id", b"i" * 120), ("max_dhcp_size", 1500)), network)
        assert roomy[BOOTP].file == bytes(128)
        assert domain.parse_list(told(roomy)[119]) == names

    def test_one_that_fits_nowhere_is_not_told(self) -> None:
        name = ".".join(["z" * 60] * 4)
        network = evolve(NETWORK, resolvers=Resolvers(search=(name,)))
        assert 119 not in told(reply_to(ask("discover", ("client_id", b"i" * 100)), network))


class TestRoom:
    """The client's maximum message size (option 57), and the link's."""

    @pytest.mark.parametrize(
        ("client_takes", "mtu_bytes", "datagram_bytes"),
        [
            (None, 65520, 576),
            (576, 65520, 576),
            (100, 65520, 576),
            (0, 65520, 576),
            (1500, 65520, 1500),
            (65535, 65520, 65520),
            (65535, 0, 65520),
            (1500, 68, 328),
            (1500, 327, 328),
            (1500, 400, 400),
            (None, 576, 576),
        ],
    )
    def test_replies_fit_client_and_link(self, client_takes: int | None, mtu_bytes: int, datagram_bytes: int) -> None:
        options = [] if client_takes is None else [("max_dhcp_size", client_takes)]
        reply = reply_to(ask("discover", ("client_id", b"i" * 100), *options), crowded(mtu_bytes))
        assert 328 <= reply[IP].len <= datagram_bytes
        assert len(reply[BOOTP]) >= 300
        assert told(reply).keys() >= {53, 54, 51, 1, 3, 6}

    @pytest.mark.parametrize("mtu_bytes", [68, 100, 328, 340, 400, 500, 576, 1280])
    @pytest.mark.parametrize(
        "requested", [[119, 15, 12, 81, 1, 3, 6, 26, 121, 249], [1, 121, 3, 6, 12, 15, 26, 81, 119, 249], None]
    )
    def test_the_way_out_matters_more_than_names(self, mtu_bytes: int, requested: list[int] | None) -> None:
        network = evolve(crowded(mtu_bytes), ipv4=GATEWAY_OFF_LINK.ipv4)
        wishes = [] if requested is None else [wants(*requested)]
        reply = reply_to(ask("discover", ("client_id", b"i" * 19), (81, b"\x04\0\0"), *wishes), network)
        options = told(reply)
        assert options.keys() >= {53, 54, 51, 58, 59, 61, 1, 3, 6, 26, 121}
        assert (options[26], options[121], len(options[6])) == (mtu_bytes.to_bytes(2, "big"), ROUTES, 64)

    def test_order_among_the_options_is_as_asked_for(self) -> None:
        requested = [119, 15, 12, 6, 26, 3, 1]
        reply = reply_to(ask("discover", wants(*requested)), crowded(328))
        positions = [bytes(reply[BOOTP])[240:].find(bytes((code, size))) for code, size in ((26, 2), (1, 4), (3, 4))]
        assert -1 not in positions
        assert positions == sorted(positions)

    def test_giant_client_identifier_does_not_crowd_out_the_lease(self) -> None:
        options = told(reply_to(ask("discover", ("client_id", b"i" * 255))))
        assert options[61] == b"i" * 255
        assert options.keys() >= {1, 3, 6, 51, 53, 54}
        small = told(reply_to(ask("discover", ("client_id", b"i" * 255)), evolve(NETWORK, mtu_bytes=328)))
        assert 61 not in small
        assert small.keys() >= {1, 3, 6, 51, 53, 54, 58, 59}

    def test_client_identifier_in_parts_is_not_returned(self) -> None:
        assert 61 not in told(reply_to(ask("discover", ("client_id", b"i" * 255), ("client_id", b"i"))))

    @pytest.mark.parametrize(("mtu_bytes", "value"), [(68, b"\0\x44"), (1500, b"\x05\xdc"), (67, None), (0, None)])
    def test_mtu(self, mtu_bytes: int, value: bytes | None) -> None:
        assert told(reply_to(ask("discover"), evolve(NETWORK, mtu_bytes=mtu_bytes))).get(26) == value

    def test_at_most_16_nameservers(self) -> None:
        network = evolve(NETWORK, resolvers=Resolvers(MANY_SERVERS))
        assert told(reply_to(ask("discover"), network))[6] == b"".join(one.packed for one in MANY_SERVERS[:16])


def crowded(mtu_bytes: int) -> GuestNetwork:
    """More to tell than there is room for."""
    return evolve(NAMED, mtu_bytes=mtu_bytes, resolvers=Resolvers(MANY_SERVERS, search=MANY_NAMES))
