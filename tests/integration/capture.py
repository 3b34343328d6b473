"""What the daemon sent to the guest, read from its capture by Wireshark's dissectors: an oracle that is not ours."""

from __future__ import annotations

import functools
import subprocess
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

DAEMON_MAC = "9a:55:9a:55:9a:55"
CHECKSUM_FIELDS = ("ip", "tcp", "udp", "icmp", "icmpv6")
CHECKSUM_BAD = "0"
EXPERT_GROUP_CHECKSUM = str(0x01000000)
EXPERT_GROUP_MALFORMED = str(0x07000000)
EXPERT_SEVERITY_ERROR = str(0x00800000)
TYPES = {"icmp": "icmp.type", "icmpv6": "icmpv6.type", "dhcp": "dhcp.option.dhcp", "dhcpv6": "dhcpv6.msgtype"}
COLUMNS = (
    *("frame.number", "frame.len", "frame.protocols", "_ws.expert.group", "_ws.expert.severity", "_ws.expert.message"),
    *(f"{protocol}.checksum.status" for protocol in CHECKSUM_FIELDS),
    *("ip.flags.mf", "ip.frag_offset", "ip.reassembled_in", "ip.fragment.count"),
    *("ipv6.fraghdr.nxt", "ipv6.reassembled.in", "ipv6.fragment.count"),
    *TYPES.values(),
)
TRUE = ("1", "True")
ATTEMPTS, CUT_SHORT = 5, "cut short in the middle of a packet"
"""The daemon may be writing the last one."""

ETHERNET_BYTES = 14
ICMPV6_ERRORS = frozenset(f"icmpv6 {number}" for number in (1, 2, 3, 4))
ICMPV6_ERROR_BYTES = 1280
"""RFC 4443 section 2.4 (c): the least that a link must carry."""

PREFERENCES = ("ip.check_checksum", "tcp.check_checksum", "udp.check_checksum")
OUR_PROTOCOLS = frozenset(
    {
        *("frame", "eth", "ethertype", "arp", "ip", "ipv6", "ipv6.fraghdr", "icmp", "icmpv6", "igmp"),
        *("tcp", "udp", "dhcp", "dhcpv6", "data"),
    }
)
"""What the daemon itself speaks. No other dissector is to look: what a test sends through a connection is only bytes,
but if its port happens to be IRC's (any ephemeral port is somebody's), Wireshark finds it malformed."""


@dataclass
class Verdict:
    """Frames that the daemon sent, counted by protocol, and what is wrong with them.

    `kinds` counts what is rare: "ipv4 fragment" and "ipv6 fragment", and ICMP and DHCP by type: "icmp 3", "dhcpv6 7".
    """

    protocols: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)


def merge(captures: list[Path], into: Path) -> Path:
    """Write the frames of several captures into one, in the order of time."""
    subprocess.run(["mergecap", "-w", str(into), *map(str, captures)], stdin=subprocess.DEVNULL, check=True)
    return into


def examine(capture: Path) -> Verdict:
    """Look at every frame from the daemon for what cannot be dissected, or only with an error, for bad checksums (also
    of what an ICMP error quotes), for fragments that make no datagram, and for ICMPv6 errors that are too long."""
    command = ["tshark", "-n", "-2", "-r", str(capture), "-Y", f"eth.src == {DAEMON_MAC}", "-T", "fields"]
    for preference in PREFERENCES:
        command += ["-o", f"{preference}:TRUE"]
    for column in COLUMNS:
        command += ["-e", column]
    for protocol in _other_protocols():
        command += ["--disable-protocol", protocol]
    for _ in range(ATTEMPTS):
        result = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        if CUT_SHORT not in result.stderr:
            break
    if result.returncode:
        raise AssertionError(f"tshark cannot read {capture}: {result.stderr}")
    verdict = Verdict()
    for line in result.stdout.splitlines():
        frame = dict(zip(COLUMNS, (values.split(",") for values in line.split("\t")), strict=True))
        (protocols,) = frame["frame.protocols"]
        verdict.protocols.update(set(protocols.split(":")))
        verdict.kinds.update(_kinds(frame))
        verdict.problems += [f"frame {frame['frame.number'][0]} ({protocols}): {text}" for text in _problems(frame)]
    return verdict


def _kinds(frame: dict[str, list[str]]) -> Iterator[str]:
    """The first of a field's values is that of the outer header, if others are of a quoted packet."""
    if frame["ip.flags.mf"][0] in TRUE or frame["ip.frag_offset"][0] not in ("", "0"):
        yield "ipv4 fragment"
    if frame["ipv6.fraghdr.nxt"][0] and "icmpv6:ipv6" not in frame["frame.protocols"][0]:
        yield "ipv6 fragment"
    for protocol, field_name in TYPES.items():
        if number := frame[field_name][0]:
            yield f"{protocol} {number}"


def _problems(frame: dict[str, list[str]]) -> Iterator[str]:
    if EXPERT_GROUP_MALFORMED in frame["_ws.expert.group"]:
        yield "malformed"
    for protocol in CHECKSUM_FIELDS:
        if CHECKSUM_BAD in frame[f"{protocol}.checksum.status"]:
            yield f"bad {protocol} checksum"
    for group, severity in zip(frame["_ws.expert.group"], frame["_ws.expert.severity"], strict=True):
        if severity == EXPERT_SEVERITY_ERROR and group not in (EXPERT_GROUP_CHECKSUM, EXPERT_GROUP_MALFORMED):
            yield f"an error: {','.join(frame['_ws.expert.message'])}"
    kinds = set(_kinds(frame))
    for version, whole_in, count in (
        ("ipv4", "ip.reassembled_in", "ip.fragment.count"),
        ("ipv6", "ipv6.reassembled.in", "ipv6.fragment.count"),
    ):
        if f"{version} fragment" in kinds and not (frame[whole_in][0] or frame[count][0]):
            yield "a fragment of what never is whole"
    if kinds & ICMPV6_ERRORS and int(frame["frame.len"][0]) > ETHERNET_BYTES + ICMPV6_ERROR_BYTES:
        yield f"an ICMPv6 error of more than {ICMPV6_ERROR_BYTES} bytes"


@functools.cache
def _other_protocols() -> list[str]:
    report = subprocess.run(["tshark", "-G", "protocols"], capture_output=True, text=True, check=True)
    names = {line.split("\t")[2] for line in report.stdout.splitlines()}
    assert names >= OUR_PROTOCOLS
    return sorted(names - OUR_PROTOCOLS)
