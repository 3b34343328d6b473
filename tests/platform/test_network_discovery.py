"""What is discovered in a network namespace with given interfaces, addresses and routes: the kernel's netlink itself.

Each case is a namespace of its own that lives as long as the process which looks around in it.
"""

import os
import shutil
import subprocess
import sys

import pytest

LOOK = """
import os
from trio_passt.host.netlink import read_host_network
from trio_passt.host.network import choose

name = os.environ.get("INTERFACE")
found = choose(*read_host_network(), interface_ipv4=name, interface_ipv6=name)
for guest in (found.ipv4, found.ipv6):
    print(guest and f"{guest.address}/{guest.prefix_length} by {guest.gateway} as {guest.interface}")
print("; ".join(found.notes))
"""

VETH = """
ip link add host0 type veth peer name far0
ip link set host0 up
ip link set far0 up
"""
TUN = """
ip tuntap add tun0 mode tun
ip link set tun0 up
"""
V4 = "ip addr add 192.0.2.2/24 dev host0; ip route add default via 192.0.2.1"
V6 = "ip addr add 2001:db8::2/64 dev host0 nodad; ip route add default via fe80::1 dev host0"
NAMED = "export INTERFACE={}\n"
TWO_ROUTES = (
    VETH + "ip addr add 192.0.2.2/24 dev host0; ip addr add 198.51.100.2/24 dev far0;"
    "ip addr add 2001:db8::2/64 dev far0 nodad;"
    "ip route add default via 192.0.2.1 metric 1; ip route add default via 198.51.100.1 metric 100;"
    "ip -6 route add default via fe80::1 dev far0"
)
LOCAL_4 = "169.254.2.1/16 by 169.254.2.2 as None"
LOCAL_6 = "fe80::2/64 by fe80::1 as None"

CASES = {
    "both families": (
        VETH + V4 + "\n" + V6,
        "192.0.2.2/24 by 192.0.2.1 as host0",
        "2001:db8::2/64 by fe80::1 as host0",
    ),
    "IPv4 only": (VETH + V4, "192.0.2.2/24 by 192.0.2.1 as host0", "None"),
    "IPv6 only": (VETH + V6, "None", "2001:db8::2/64 by fe80::1 as host0"),
    "nothing at all": ("", LOCAL_4, LOCAL_6),
    "a subnet and no default route": (VETH + "ip addr add 192.0.2.2/24 dev host0", LOCAL_4, LOCAL_6),
    "tun without gateway": (
        TUN + "ip addr add 198.51.100.1/24 dev tun0; ip route add default dev tun0",
        "198.51.100.1/24 by 198.51.100.2 as tun0",
        "None",
    ),
    "tun with a peer": (
        TUN + "ip addr add 198.51.100.1 peer 203.0.113.9 dev tun0; ip route add default dev tun0",
        "198.51.100.1/32 by 203.0.113.9 as tun0",
        "None",
    ),
    "tun, IPv6 without gateway": (
        TUN + "ip addr add 2001:db8::5/128 dev tun0 nodad; ip -6 route add default dev tun0",
        "None",
        "2001:db8::5/128 by fe80::9855:9aff:fe55:9a55 as tun0",
    ),
    "IPv6 gateway with a global address": (
        VETH + "ip addr add 2001:db8::2/64 dev host0 nodad; ip route add default via 2001:db8::1",
        "None",
        "2001:db8::2/64 by fe80::9855:9aff:fe55:9a55 as host0",
    ),
    "gateway off-link": (
        VETH + "ip addr add 203.0.113.7/32 dev host0; ip route add default via 192.0.2.1 dev host0 onlink",
        "203.0.113.7/32 by 192.0.2.1 as host0",
        "None",
    ),
    "IPv4 by an IPv6 router": (
        VETH + "ip addr add 192.0.2.2/24 dev host0; ip -4 route add default via inet6 fe80::1 dev host0",
        "192.0.2.2/24 by 192.0.2.1 as host0",
        "None",
    ),
    "metrics": (
        VETH + "ip addr add 192.0.2.2/24 dev host0; ip addr add 198.51.100.2/24 dev far0;"
        "ip route add default via 192.0.2.1 metric 600; ip route add default via 198.51.100.1 metric 100",
        "198.51.100.2/24 by 198.51.100.1 as far0",
        "None",
    ),
    "multipath": (
        VETH + "ip addr add 192.0.2.2/24 dev host0; ip addr add 198.51.100.2/24 dev far0;"
        "ip route add default nexthop via 192.0.2.1 nexthop via 198.51.100.1;"
        "ip addr add 2001:db8::2/64 dev host0 nodad;"
        "ip -6 route add default nexthop via fe80::1 dev host0 nexthop via fe80::2 dev far0",
        "192.0.2.2/24 by 192.0.2.1 as host0",
        "2001:db8::2/64 by fe80::1 as host0",
    ),
    "next hop object": (
        VETH + "ip addr add 192.0.2.2/24 dev host0; ip nexthop add id 7 via 192.0.2.1 dev host0;"
        "ip route add default nhid 7",
        "192.0.2.2/24 by 192.0.2.1 as host0",
        "None",
    ),
    "preferred source address": (
        VETH + "ip addr add 192.0.2.2/24 dev host0; ip addr add 192.0.2.77/24 dev host0;"
        "ip route add default via 192.0.2.1 src 192.0.2.77",
        "192.0.2.77/24 by 192.0.2.1 as host0",
        "None",
    ),
    "unnumbered interface": (
        VETH
        + "ip link set lo up; ip addr add 203.0.113.1/32 dev lo; ip route add default via 192.0.2.1 dev host0 onlink",
        "203.0.113.1/32 by 192.0.2.1 as host0",
        "None",
    ),
    "the address in the gateway's subnet": (
        VETH + "ip addr add 203.0.113.5/24 dev host0; ip addr add 192.0.2.2/24 dev host0;"
        "ip route add default via 192.0.2.1",
        "192.0.2.2/24 by 192.0.2.1 as host0",
        "None",
    ),
    "named interface beside a better route": (
        NAMED.format("far0") + TWO_ROUTES,
        "198.51.100.2/24 by 198.51.100.1 as far0",
        "2001:db8::2/64 by fe80::1 as far0",
    ),
    "named interface without a default route": (
        NAMED.format("far0") + VETH + "ip addr add 192.0.2.2/24 dev host0; ip route add default via 192.0.2.1;"
        "ip addr add 198.51.100.2/24 dev far0; ip addr add 2001:db8::2/64 dev far0 nodad",
        "198.51.100.2/24 by 198.51.100.1 as far0",
        "2001:db8::2/64 by fe80::9855:9aff:fe55:9a55 as far0",
    ),
    "named tun beside the default route": (
        NAMED.format("tun0") + VETH + V4 + TUN + "ip addr add 198.51.100.1 peer 203.0.113.9 dev tun0",
        "198.51.100.1/32 by 203.0.113.9 as tun0",
        "None",
    ),
    "named interface with one path of a route": (
        NAMED.format("far0") + VETH + "ip addr add 192.0.2.2/24 dev host0; ip addr add 198.51.100.2/24 dev far0;"
        "ip route add default nexthop via 192.0.2.1 nexthop via 198.51.100.1",
        "198.51.100.2/24 by 198.51.100.1 as far0",
        "None",
    ),
    "named interface without any address": (NAMED.format("far0") + VETH + V4, LOCAL_4, LOCAL_6),
    "deprecated address": (
        VETH + "ip addr add 2001:db8::bad/64 dev host0 nodad preferred_lft 0;" + V6,
        "None",
        "2001:db8::2/64 by fe80::1 as host0",
    ),
    "unreachable and policy routes": (
        VETH + "ip addr add 192.0.2.2/24 dev host0; ip route add unreachable default metric 1;"
        "ip route add default via 192.0.2.1 table 51820",
        LOCAL_4,
        LOCAL_6,
    ),
}


@pytest.fixture(scope="module")
def namespace() -> list[str]:
    """The command that gives a command a network namespace of its own; a user namespace too where that is needed."""
    unshare = ["unshare", "--net"] if os.geteuid() == 0 else ["unshare", "--map-root-user", "--net"]
    if not (shutil.which("unshare") and shutil.which("ip")):
        pytest.skip("needs unshare(1) and ip(8)")
    if subprocess.run([*unshare, "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("needs root, or user namespaces")
    return unshare


@pytest.mark.parametrize("case", CASES)
def test_discovery(case: str, namespace: list[str]) -> None:
    setup, ipv4, ipv6 = CASES[case]
    if "tuntap" in setup and not os.access("/dev/net/tun", os.W_OK):
        pytest.skip("no /dev/net/tun")
    script = f'set -e\n{setup}\nexec "$0" -c "$1"'
    result = subprocess.run(
        [*namespace, "sh", "-c", script, sys.executable, LOOK], capture_output=True, text=True, timeout=30, check=False
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[:2] == [ipv4, ipv6], result.stdout
