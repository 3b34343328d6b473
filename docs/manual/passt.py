"""The page of `trio-passt`."""

from collections.abc import Iterator

from manual.options import options
from manual.ports import ports
from manual.roff import example, head, page, paragraphs, see_also, tagged, title

from trio_passt.cli.mode import Mode
from trio_passt.cli.option_table import sections


def passt() -> str:
    """The whole page."""
    return page(
        head("trio-passt", "network for virtual machines, without privileges", "[*OPTION*]..."),
        description(),
        options(sections(Mode.VM), others=("INTERFACE",)),
        ports(Mode.VM),
        addresses(),
        process(),
        examples(),
        notes(),
        see_also("passt(1)", "qemu(1)", "qrap(1)", "ss(8)", "capabilities(7)", "tcp(7)", "icmp(7)"),
    )


def description() -> Iterator[str]:
    """What it is."""
    yield from title("DESCRIPTION")
    yield from paragraphs(
        "`trio-passt` connects a virtual machine of QEMU to the network, from an ordinary user's process: the guest's"
        " Ethernet frames on one side, ordinary sockets on the other. There is no address translation between the guest"
        " and the world. The guest is given the host's own address, by DHCP, DHCPv6 and router advertisements, and to"
        " its peers it *is* the host. Ports of the host can be forwarded to it.",
        "The program opens its sockets, says on standard error what the guest gets and how QEMU is started, and goes"
        " into the background. When the command returns with status 0, everything is ready.",
        "Its options are those of passt(1), with the same meaning.",
    )


def addresses() -> Iterator[str]:
    """What the guest gets, and what of it is the host."""
    yield from title("ADDRESSES")
    yield from paragraphs(
        "The guest gets address, mask or prefix and gateway of the interface with the default route, for IPv4 and IPv6"
        " by themselves, and nameservers and search list of */etc/resolv.conf*, unless options say otherwise. It may"
        " use another address than that. A change of the host's network is followed: the guest hears of it by router"
        " advertisements at once, by DHCP at its next renewal.",
        "Since the guest has the host's address, the host has others for the guest: what it sends to its gateway's"
        " address goes to the host's loopback, 127.0.0.1 or ::1 (`--map-host-loopback`, `--no-map-gw`), and what it"
        " sends to the address of `--map-guest-addr` to the host's own one. Connections to forwarded ports"
        " that come from the host itself seem to come from the address that stands for it, or else the gateway's.",
        "A nameserver that only the host can reach, such as 127.0.0.53, is told the guest as the gateway's address, or"
        " that of `--dns-forward`; questions to it go to the host's nameserver.",
        "A host without any default route gives its guest local mode: 169.254.2.1, with gateway 169.254.2.2, and a"
        " link-local IPv6 address with gateway fe80::1. The guest reaches the host then, and nothing else, until the"
        " host has a network.",
    )


def process() -> Iterator[str]:
    """Exit status, files, signals, environment."""
    yield from title("EXIT STATUS")
    yield from tagged("0", "Ready, in the background; or ended in order, in foreground.")
    yield from tagged("1", "Wrong usage, or something can't be opened; standard error says what, in one line.")
    yield from tagged("128 + *N*", "Ended by signal *N* before it was ready.")
    yield from title("FILES")
    yield from tagged(
        "*/tmp/passt_1.socket* to */tmp/passt_64.socket*",
        "Where the guest connects without `--socket`: the first that is free. Removed at the end.",
    )
    yield from tagged("*/etc/resolv.conf*", "Nameservers and search list, read again when it changes.")
    yield from tagged("*/dev/log*", "Where the log goes in the background, unless there is a `--log-file`.")
    yield from title("SIGNALS")
    yield from tagged(
        "`SIGTERM`, `SIGINT`, `SIGQUIT`, `SIGHUP`",
        "The end, in order: connections are reset, socket and PID file removed, exit status 0. (Not by a"
        " SIGHUP that is ignored from the start, as with `nohup`(1).)",
    )
    yield from tagged(
        "`SIGUSR1`",
        "A table of the guest's connections and of counters goes to the log, also with `--quiet`. States are those of"
        " TCP that `ss`(8) in the guest has; sizes are those of the data. An arrow says who has opened"
        " it: -> the guest, <- somebody by a forwarded port. Of each protocol the 500 newest are shown. However often"
        " it is asked for, there is one table a second at most.",
    )
    yield from title("ENVIRONMENT")
    yield from tagged(
        "`LISTEN_FDS`, `LISTEN_PID`",
        "A service manager has opened the socket (see `systemd.socket`(5)): guests connect there, or it is the guest's"
        " own connection.",
    )
    yield from tagged("`NOTIFY_SOCKET`", "A service manager is told when everything is ready (see `sd_notify`(3)).")


def examples() -> Iterator[str]:
    """With QEMU and libvirt."""
    yield from title("EXAMPLES")
    yield from paragraphs("A guest of QEMU 7.2 or later, whose SSH server is the host's port 2222:")
    yield from example(
        "trio-passt -t 2222:22 -s /tmp/guest.socket",
        "qemu-system-x86_64 -m 1G disk.qcow2 -device virtio-net-pci,netdev=n \\",
        "    -netdev stream,id=n,server=off,addr.type=unix,addr.path=/tmp/guest.socket",
    )
    yield from paragraphs("An older QEMU, by `qrap`(1), which finds the default socket:")
    yield from example("trio-passt -t 2222:22", "qrap -m 1G disk.qcow2")
    yield from paragraphs("A domain of libvirt, where this program is found by the name *passt* in `PATH`:")
    yield from example(
        '<interface type="user">',
        '  <backend type="passt"/>',
        '  <model type="virtio"/>',
        '  <portForward proto="tcp">',
        '    <range start="2222" to="22"/>',
        "  </portForward>",
        "</interface>",
    )
    yield from paragraphs("All ports of the host but that of its own SSH server, TCP and UDP:")
    yield from example("trio-passt -t ~22")


def notes() -> Iterator[str]:
    """What the host has to permit."""
    yield from title("NOTES")
    yield from tagged(
        "Ports below 1024",
        "An ordinary user may open them if the sysctl *net.ipv4.ip_unprivileged_port_start* is lower, or the program"
        " has the capability `CAP_NET_BIND_SERVICE`.",
    )
    yield from tagged(
        "Ping",
        "What the guest pings is pinged by the host, for which a group of the process has to be in the sysctl"
        " *net.ipv4.ping_group_range*. If it is not, the guest can ping its gateway's address only.",
    )
    yield from tagged(
        "All ports",
        "Each port is a socket for each of TCP and UDP, IPv4 and IPv6: about 150,000 descriptors, where many systems"
        " allow a process fewer (`ulimit -Hn`; `LimitNOFILE=` of `systemd.exec`(5)). Then as many ports are open as"
        " possible, and a line of the log says how many.",
    )
