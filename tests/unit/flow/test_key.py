from ipaddress import ip_address

from trio_passt.flow.key import FlowKey


def packed(text: str) -> bytes:
    return ip_address(text).packed


def test_flows_of_one_name_are_one() -> None:
    key = FlowKey(packed("192.0.2.1"), 5000, packed("198.51.100.7"), 80)
    assert {key: "flow"}[FlowKey(bytes(bytearray(key.guest)), 5000, packed("198.51.100.7"), 80)] == "flow"
    for other in (key._replace(guest_port=5001), key._replace(remote_port=81), key._replace(guest=key.remote)):
        assert other not in {key}


def test_as_text() -> None:
    key = FlowKey(packed("192.0.2.1"), 5000, packed("198.51.100.7"), 80)
    assert str(key) == "192.0.2.1 port 5000 ↔ 198.51.100.7 port 80"
    assert str(FlowKey(packed("fe80::1"), 1, packed("2001:db8::1"), 2)) == "fe80::1 port 1 ↔ 2001:db8::1 port 2"
