"""What the daemon sent to the guest, read from its capture by Wireshark's dissectors: an oracle that is not ours."""

from __future__ import annotations

import subprocess
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

DAEMON_MAC = "9a:55:9a:55:9a:55"
CHECKSUM_FIELDS = ("ip", "tcp", "udp", "icmp", "icmpv6")
CHECKSUM_BAD = "0"
EXPERT_GROUP_MALFORMED = str(0x07000000)
PREFERENCES = ("ip.check_checksum", "tcp.check_checksum", "udp.check_checksum")

OUR_PROTOCOLS = frozenset(
    {"frame", "eth", "ethertype", "arp", "ip", "ipv6", "icmp", "icmpv6", "igmp", "tcp", "udp", "dhcp", "dhcpv6", "data"}
)
"""What the daemon itself speaks. No other dissector is to look: what a test sends through a connection is only bytes,
but if its port happens to be IRC's (any ephemeral port is somebody's), Wireshark finds it malformed."""


@dataclass
class Verdict:
    """Frames that the daemon sent, counted by protocol, and what is wrong with them."""

    protocols: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)


def examine(capture: Path) -> Verdict:
    """Look at every frame from the daemon for bad checksums, and for what cannot be dissected."""
    columns = ["frame.number", "frame.protocols", "_ws.expert.group"]
    columns += [f"{protocol}.checksum.status" for protocol in CHECKSUM_FIELDS]
    command = ["tshark", "-n", "-r", str(capture), "-Y", f"eth.src == {DAEMON_MAC}", "-T", "fields"]
    for preference in PREFERENCES:
        command += ["-o", f"{preference}:TRUE"]
    for column in columns:
        command += ["-e", column]
    for protocol in _other_protocols():
        command += ["--disable-protocol", protocol]
    result = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if result.returncode:
        raise AssertionError(f"tshark cannot read {capture}: {result.stderr}")
    verdict = Verdict()
    for line in result.stdout.splitlines():
        number, protocols, groups, *statuses = line.split("\t")
        verdict.protocols.update(set(protocols.split(":")))
        if EXPERT_GROUP_MALFORMED in groups.split(","):
            verdict.problems.append(f"frame {number} ({protocols}): malformed")
        for protocol, status in zip(CHECKSUM_FIELDS, statuses, strict=True):
            if CHECKSUM_BAD in status.split(","):
                verdict.problems.append(f"frame {number} ({protocols}): bad {protocol} checksum")
    return verdict


def _other_protocols() -> list[str]:
    report = subprocess.run(["tshark", "-G", "protocols"], capture_output=True, text=True, check=True)
    names = {line.split("\t")[2] for line in report.stdout.splitlines()}
    assert names >= OUR_PROTOCOLS
    return sorted(names - OUR_PROTOCOLS)
