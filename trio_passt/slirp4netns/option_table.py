"""The options of slirp4netns(1), as data."""

from trio_passt.cli.getopt import Option, Section

DEFAULT_MTU_BYTES = 1500
LARGEST_MTU_BYTES = 65521
"""What slirp4netns takes; one more than the link has (`config.DEFAULT_MTU_BYTES`)."""

DEFAULT_CIDR = "10.0.2.0/24"

FORMS = ("[OPTION]... PID|PATH [TAPNAME]",)

PURPOSE = (
    "Connect a network namespace to the network from an unprivileged process, as slirp4netns does: the same command"
    " line, addresses and API socket. TAPNAME is the interface's name in there, by default tap0."
)

SECTIONS = (
    Section(
        "General",
        (
            Option(("help",), "h", None, "Print this help and exit."),
            Option(("version",), "v", None, "Print the version and exit."),
            Option(("exit-fd",), "e", "FD", "Exit when FD is hung up, or can be read from."),
            Option(("ready-fd",), "r", "FD", 'Write "1" to FD when everything is ready, and close it.'),
            Option(
                ("api-socket",), "a", "PATH", "Take requests to forward ports at the UNIX socket PATH (see API SOCKET)."
            ),
            Option(
                ("enable-sandbox",),
                None,
                None,
                "Give up all capabilities but CAP_NET_BIND_SERVICE. Root does so anyway, and goes on as nobody.",
            ),
            Option(("enable-seccomp",), None, None, "Accepted for compatibility, without effect."),
        ),
    ),
    Section(
        "Namespace",
        (
            Option(
                ("netns-type",),
                None,
                "TYPE",
                "What the first argument is: 'pid', a process whose network namespace it is (default), or 'path'.",
            ),
            Option(
                ("userns-path",),
                None,
                "PATH",
                "Join the user namespace of PATH for that. Default: that of the process, or the one that owns the"
                " network namespace.",
            ),
            Option(
                ("target-type",), None, "TYPE", "'netns'; there is no 'bess', the socket of a User Mode Linux, here."
            ),
            Option(("configure",), "c", None, "Give the interface its addresses and routes, and bring it and lo up."),
            Option(("macaddress",), None, "MAC", "MAC address of the interface; for --configure only."),
            Option(
                ("mtu",),
                "m",
                "BYTES",
                f"MTU of the interface, {LARGEST_MTU_BYTES} at most. Default: {DEFAULT_MTU_BYTES}.",
            ),
        ),
    ),
    Section(
        "Addresses",
        (
            Option(
                ("cidr",),
                None,
                "CIDR",
                f"The IPv4 network. In it, 2 is the host, 3 the nameserver, 100 the guest. Default: {DEFAULT_CIDR}.",
            ),
            Option(("enable-ipv6",), "6", None, "IPv6, too: fd00::2 is the host, fd00::3 the nameserver."),
            Option(
                ("disable-host-loopback",),
                None,
                None,
                "The host's address does not lead to the loopback of this host (127.0.0.1, ::1).",
            ),
            Option(
                ("disable-dns",), None, None, "The nameserver's address does not lead to the nameserver of this host."
            ),
            Option(
                ("outbound-addr",),
                None,
                "ADDRESS|NAME",
                "IPv4 connections leave from this address, or by the interface NAME, of this host.",
            ),
            Option(("outbound-addr6",), None, "ADDRESS|NAME", "The same for IPv6."),
        ),
    ),
)

OPTIONS = tuple(option for section in SECTIONS for option in section.options)
