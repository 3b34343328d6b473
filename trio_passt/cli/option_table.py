"""The options, as data: the scanner, `--help` and the manual pages read this one table.

Most options are of both modes.  Those of one mode only are unknown in the other, and one that means something a little
different in each is there twice.
"""

from attrs import evolve

from trio_passt.cli.getopt import Option, Section
from trio_passt.cli.mode import Mode
from trio_passt.config import DEFAULT_MTU_BYTES, LOG_SIZE_BYTES

MINIMUM_MTU_BYTES = 68
"""RFC 791: every internet module must be able to forward a datagram of 68 octets without fragmentation."""

MINIMUM_IPV6_MTU_BYTES = 1280
"""RFC 8200 section 5: a link with less can't carry IPv6."""

MINIMUM_LOG_SIZE_BYTES = 4096
"""Enough for some lines, whatever they say."""


def _flag(name: str, short: str | None, text: str, mode: Mode | None = None) -> Option:
    return Option((name,), short, None, text, mode)


def _valued(name: str, short: str | None, argument: str, text: str, mode: Mode | None = None) -> Option:
    return Option((name,), short, argument, text, mode)


TABLE = (
    Section(
        "General",
        (
            _flag("help", "h", "Print this help and exit."),
            _flag("version", None, "Print the version and exit."),
            _flag("foreground", "f", "Don't go into the background.", Mode.VM),
            _flag("foreground", "f", "Don't go into the background. With a COMMAND this is always so.", Mode.NAMESPACE),
            _flag("quiet", "q", "No start-up message; log warnings and errors only."),
            _flag("debug", "d", "Log the configuration, and what happens to every flow."),
            _flag("trace", None, "Log each frame, too."),
            _flag("stderr", "e", "Accepted for compatibility, without effect."),
            _valued(
                "log-file",
                "l",
                "FILE",
                "Log to FILE, not to standard error (in foreground) or the system's log (in background).",
            ),
            _valued(
                "log-size",
                None,
                "BYTES",
                "Size of the log file at most; its oldest lines make room for new ones."
                f" {MINIMUM_LOG_SIZE_BYTES} or more, default: {LOG_SIZE_BYTES}.",
            ),
            _valued("pid", "P", "FILE", "Write the daemon's process ID to FILE once it is ready; removed at the end."),
            _valued(
                "runas",
                None,
                "USER[:GROUP]",
                "Go on as USER and GROUP, names or numbers, once everything is open. Default, if started as root:"
                " nobody.",
            ),
            _valued("pcap", "p", "FILE", "Capture the guest's frames, both ways, to FILE in pcap format."),
        ),
    ),
    Section(
        "Attachment of the guest",
        (
            Option(
                ("socket", "socket-path"),
                "s",
                "PATH",
                "UNIX socket for QEMU to connect to. Default: the first free one of /tmp/passt_1.socket to _64.",
                Mode.VM,
            ),
            _valued(
                "fd", "F", "FD", "Use the connected socket FD, inherited from the caller; implies --one-off.", Mode.VM
            ),
            _flag("one-off", "1", "Exit when the first guest disconnects.", Mode.VM),
        ),
    ),
    Section(
        "Namespace that is the guest",
        (
            _valued(
                "netns",
                None,
                "PATH|NAME",
                "Join the network namespace of PATH, or of NAME as in ip-netns(8), in place of a COMMAND's or a"
                " process's.",
                Mode.NAMESPACE,
            ),
            _valued(
                "userns",
                None,
                "PATH",
                "Join the user namespace of PATH for that. Default: that of the process, or the one that owns the"
                " network namespace.",
                Mode.NAMESPACE,
            ),
            _flag("netns-only", None, "Join or make no user namespace: network namespaces only.", Mode.NAMESPACE),
            _flag(
                "no-netns-quit",
                None,
                "Stay when the process, or the PATH or NAME of --netns, is gone. Default: exit then.",
                Mode.NAMESPACE,
            ),
            _valued(
                "ns-ifname",
                "I",
                "NAME",
                "Name of the interface in the namespace. Default: as the host's that the guest's network is taken"
                " from, or tap0.",
                Mode.NAMESPACE,
            ),
            _valued(
                "ns-mac-addr",
                None,
                "MAC",
                "MAC address of the interface in the namespace. Default: one of the kernel's choice.",
                Mode.NAMESPACE,
            ),
            _flag(
                "config-net",
                None,
                "Give the interface its addresses and routes, and bring it up. Default in a namespace that is joined:"
                " that is for a DHCP client to do, or whatever sets up networks in there.",
                Mode.NAMESPACE,
            ),
            _flag(
                "no-config-net",
                None,
                "Leave the interface in a new namespace as it is. Default: it is set up, so that COMMAND is online; a"
                " DHCP client may still change that. (Not an option of pasta.)",
                Mode.NAMESPACE,
            ),
            _flag(
                "no-copy-routes",
                None,
                "When it is set up: the default route only. Default: all routes of the host's interface, but for a"
                " family with a --gateway.",
                Mode.NAMESPACE,
            ),
            _flag(
                "no-copy-addrs",
                None,
                "When it is set up: one address of each family. Default: all of the host's interface, but for a family"
                " with an --address.",
                Mode.NAMESPACE,
            ),
        ),
    ),
    Section(
        "Addresses of the guest",
        (
            _flag("ipv4-only", "4", "The guest gets IPv4 only."),
            _flag("ipv6-only", "6", "The guest gets IPv6 only."),
            _valued(
                "interface",
                "i",
                "NAME",
                "Take addresses and gateways from the host's interface NAME. Default: those of --outbound-if4 and"
                " --outbound-if6, or else the default route's.",
            ),
            _valued(
                "address",
                "a",
                "ADDRESS[/PREFIX]",
                "Give the guest ADDRESS, in place of the host's. May be repeated: the first one of a family is the"
                " guest's main one.",
            ),
            _valued(
                "netmask",
                "n",
                "MASK",
                "The guest's IPv4 mask, dotted or as a number of bits. Default: the host's for its own addresses, else"
                " by the address's class.",
            ),
            _valued(
                "gateway",
                "g",
                "ADDRESS",
                "The guest's gateway, in place of the host's. Once for each of IPv4 and IPv6.",
            ),
            _valued("mac-addr", "M", "MAC", "MAC address of the host's side of the link."),
            _valued(
                "mtu",
                "m",
                "BYTES",
                f"MTU told to the guest: {MINIMUM_MTU_BYTES} to {DEFAULT_MTU_BYTES}, or 0 to tell it none."
                f" Below {MINIMUM_IPV6_MTU_BYTES} there is no IPv6. Default: {DEFAULT_MTU_BYTES}.",
            ),
        ),
    ),
    Section(
        "Names and nameservers",
        (
            _valued("hostname", "H", "NAME", "Host name for the guest, told by DHCP."),
            _valued("fqdn", None, "NAME", "Fully qualified domain name for the guest, told by DHCP and DHCPv6."),
            _valued(
                "dns",
                "D",
                "ADDRESS",
                "A nameserver, in place of those of /etc/resolv.conf. May be repeated; 'none': no nameserver.",
            ),
            _valued(
                "dns-forward",
                None,
                "ADDRESS",
                "What the guest sends to ADDRESS, ports 53 and 853 of TCP and UDP, goes to the host's nameserver (see"
                " --dns-host). Once for each of IPv4 and IPv6. A nameserver that only the host can reach is told the"
                " guest as ADDRESS.",
            ),
            _valued(
                "dns-host",
                None,
                "ADDRESS",
                "The host's nameserver for --dns-forward, and for what the guest asks at its gateway's address. Once"
                " for each of IPv4 and IPv6. Default: the first one of --dns or /etc/resolv.conf.",
            ),
            _valued(
                "search",
                "S",
                "LIST",
                "Search domains, separated by blanks, in place of those of /etc/resolv.conf. May be repeated; 'none':"
                " no domains.",
            ),
            _flag(
                "no-dhcp-dns",
                None,
                "Tell the guest no nameserver, by DHCP, DHCPv6 and router advertisements.",
                Mode.VM,
            ),
            _flag("dhcp-dns", None, "Tell the guest the nameservers. This is the default.", Mode.VM),
            _flag("no-dhcp-search", None, "Tell the guest no search domains.", Mode.VM),
            _flag("dhcp-search", None, "Tell the guest the search domains. This is the default.", Mode.VM),
            _flag(
                "no-dhcp-dns",
                None,
                "Tell the guest no nameserver, by DHCP, DHCPv6 and router advertisements. This is the default: it"
                " shares the host's /etc/resolv.conf.",
                Mode.NAMESPACE,
            ),
            _flag("dhcp-dns", None, "Tell the guest the nameservers.", Mode.NAMESPACE),
            _flag("no-dhcp-search", None, "Tell the guest no search domains. This is the default.", Mode.NAMESPACE),
            _flag("dhcp-search", None, "Tell the guest the search domains.", Mode.NAMESPACE),
            _valued(
                "dhcp-boot",
                None,
                "FILE[,NAME[,ADDRESS]]",
                "For a guest that boots from the network: FILE is a path for TFTP or a URL, NAME and ADDRESS are the"
                " server's. Default: no name, and the address at which the guest reaches this host. (Not an option of"
                " passt.)",
            ),
        ),
    ),
    Section(
        "This host, as the guest reaches it",
        (
            _valued(
                "map-host-loopback",
                None,
                "ADDRESS",
                "What the guest sends to ADDRESS goes to this host's loopback (127.0.0.1, ::1). Once for each of IPv4"
                " and IPv6. Default: the gateway's address; 'none': no address does.",
            ),
            _flag("no-map-gw", None, "The gateway's address is the gateway's, not this host's."),
            _valued(
                "map-guest-addr",
                None,
                "ADDRESS",
                "What the guest sends to ADDRESS goes to this host's own address, which is the guest's, too. Once for"
                " each of IPv4 and IPv6. Default: 'none'.",
            ),
        ),
    ),
    Section(
        "Connections of the guest",
        (
            _valued(
                "outbound",
                "o",
                "ADDRESS",
                "Connections of the guest leave from this address of the host. Once for each of IPv4 and IPv6."
                " Default: as the host's routes say.",
            ),
            _valued("outbound-if4", None, "NAME", "The guest's IPv4 connections leave by the host's interface NAME."),
            _valued("outbound-if6", None, "NAME", "The guest's IPv6 connections leave by the host's interface NAME."),
            _flag("no-tcp", None, "No TCP, neither from the guest nor to it."),
            _flag("no-udp", None, "No UDP, neither from the guest nor to it; DHCP and DHCPv6 are not affected."),
            _flag("no-icmp", None, "No ICMP and ICMPv6 echo."),
        ),
    ),
    Section(
        "Services for the guest",
        (
            _flag("no-dhcp", None, "Don't answer DHCP."),
            _flag("no-dhcpv6", None, "Don't answer DHCPv6."),
            _flag("no-ndp", None, "Don't answer neighbour discovery, and send no router advertisements."),
            _flag("no-ra", None, "Send no router advertisements."),
        ),
    ),
    Section(
        "Ports of this host that are forwarded to the guest",
        (
            _valued(
                "tcp-ports",
                "t",
                "SPEC",
                "Forward TCP ports; may be repeated. SPEC is 'none' (default), 'all', or a comma-separated list of"
                " ports (22), ranges (8000-8010), ports with another target in the guest (2222:22,"
                " 8000-8010:9000-9010) and exclusions (~8005; on their own: all but these). ADDRESS/, %INTERFACE/ or"
                " ADDRESS%INTERFACE/ before the list: only there (127.0.0.1/22, %eth0/22). 'all' is every port that"
                " is free and not an ephemeral one.",
                Mode.VM,
            ),
            _valued(
                "udp-ports",
                "u",
                "SPEC",
                "The same for UDP. Default: the host's port numbers given with -t, not translated.",
                Mode.VM,
            ),
            _valued(
                "tcp-ports",
                "t",
                "SPEC",
                "Forward TCP ports; may be repeated. SPEC is 'none', 'auto' (default), 'all', or a comma-separated list"
                " of ports (22), ranges (8000-8010), ports with another target in the guest (2222:22,"
                " 8000-8010:9000-9010) and exclusions (~8005; on their own: all but these). ADDRESS/, %INTERFACE/ or"
                " ADDRESS%INTERFACE/ before the list: only there (127.0.0.1/22, %eth0/22). 'all' is every port that"
                " is free and not an ephemeral one. 'auto' is the ports at which something listens in the guest, also"
                " later; in a list (~22,auto): of those of the list.",
                Mode.NAMESPACE,
            ),
            _valued("udp-ports", "u", "SPEC", "The same for UDP. Default: 'auto'.", Mode.NAMESPACE),
            _flag("freebind", None, "Ports may be forwarded at addresses that this host does not have (yet)."),
        ),
    ),
    Section(
        "Ports of this host in the namespace",
        (
            _valued(
                "tcp-ns",
                "T",
                "SPEC",
                "TCP ports of the namespace's loopback that lead to this host's; may be repeated. SPEC is as for"
                " --tcp-ports, with loopback addresses only. Default: 'auto', those at which something listens on this"
                " host.",
                Mode.NAMESPACE,
            ),
            _valued("udp-ns", "U", "SPEC", "The same for UDP. Default: 'auto'.", Mode.NAMESPACE),
            _flag(
                "host-lo-to-ns-lo",
                None,
                "Connections from this host's loopback to forwarded ports arrive at the namespace's loopback. Default:"
                " at the guest's own address.",
                Mode.NAMESPACE,
            ),
            _flag(
                "no-splice",
                None,
                "Connections from this host's loopback to forwarded ports go by the interface, too, as all others.",
                Mode.NAMESPACE,
            ),
        ),
    ),
)


def sections(mode: Mode) -> tuple[Section, ...]:
    """What there is in this mode."""
    of_mode = (
        evolve(section, options=tuple(option for option in section.options if option.mode in (None, mode)))
        for section in TABLE
    )
    return tuple(section for section in of_mode if section.options)


def options(mode: Mode) -> tuple[Option, ...]:
    """The same, without the sections."""
    return tuple(option for section in sections(mode) for option in section.options)
