"""DHCP messages for the codec's tests."""

from __future__ import annotations

from codec_checks import ipv4s, macs, u8, u16, u32
from hypothesis import strategies as st
from scapy.layers.dhcp import BOOTP

from trio_passt.wire import dhcp
from trio_passt.wire.dhcp import DhcpMessage, DhcpOperation, DhcpOption

MAC = bytes.fromhex("525400123456")
COOKIE = dhcp.MAGIC_COOKIE

options = st.dictionaries(
    st.integers(1, 254).filter(lambda code: code != DhcpOption.OVERLOAD), st.binary(max_size=600), max_size=6
).map(lambda items: tuple(items.items()))
field_texts = st.binary(max_size=60).map(lambda text: text.replace(b"\0", b"."))
messages = st.builds(
    DhcpMessage,
    operation=u8,
    transaction_id=u32,
    client_mac=macs | st.binary(max_size=16),
    options=options,
    broadcast=st.booleans(),
    ciaddr=ipv4s,
    yiaddr=ipv4s,
    siaddr=ipv4s,
    giaddr=ipv4s,
    server_name=field_texts,
    boot_file=field_texts,
    hardware_type=u8,
    hops=u8,
    elapsed_s=u16,
)


def fixed(**fields: object) -> bytes:
    """236 bytes from scapy."""
    return bytes(BOOTP(**({"chaddr": MAC, "op": 1, "xid": 7} | fields)))[:236]


def message_with(*option_values: tuple[int, bytes], server_name: bytes = b"", boot_file: bytes = b"") -> DhcpMessage:
    return DhcpMessage(DhcpOperation.REPLY, 7, MAC, option_values, server_name=server_name, boot_file=boot_file)
