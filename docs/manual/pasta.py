"""The page of `trio-pasta`."""

from collections.abc import Iterator

from manual.options import options
from manual.ports import ports
from manual.roff import example, head, page, paragraphs, see_also, tagged, title

from trio_passt.cli.mode import Mode
from trio_passt.cli.option_table import sections


def pasta() -> str:
    """The whole page."""
    return page(
        head(
            "trio-pasta",
            "network for namespaces, without privileges",
            "[*OPTION*]... [*COMMAND* [*ARG*]...]",
            "[*OPTION*]... *PID*",
            "[*OPTION*]... `--netns` *PATH*|*NAME*",
        ),
        description(),
        options(sections(Mode.NAMESPACE), others=("INTERFACE", "COMMAND")),
        ports(Mode.NAMESPACE),
        addresses(),
        local_connections(),
        process(),
        examples(),
        notes(),
        see_also(
            "pasta(1)",
            "trio-passt(1)",
            "trio-slirp4netns(1)",
            "network_namespaces(7)",
            "user_namespaces(7)",
            "ip-netns(8)",
            "ss(8)",
        ),
    )


def description() -> Iterator[str]:
    """What it is."""
    yield from title("DESCRIPTION")
    yield from paragraphs(
        "`trio-pasta` connects a network namespace to the network, from an ordinary user's process: an interface in the"
        " namespace on one side, ordinary sockets on the other. There is no address translation between the guest,"
        " which is what runs in there, and the world. It is given the host's own address, and to its peers it *is* the"
        " host. Ports are forwarded both ways as programs listen there.",
        "By default there is a new user namespace, with a network namespace of its own, in which *COMMAND* runs, or"
        " else the user's shell; `trio-pasta` ends with it, and has its exit status. With a *PID* or `--netns`, a"
        " namespace that is there already is joined: `trio-pasta` goes into the background as soon as everything is"
        " ready, and ends when the namespace is gone.",
        "A *PID* is one word of digits. Options end where *COMMAND* begins: what follows is its own; `--` may stand"
        " before it.",
        "Its options are those of pasta(1), with the same meaning. It is the program of trio-passt(1), which is this"
        " one by any name with *pasta* in it.",
    )


def addresses() -> Iterator[str]:
    """What the guest gets, and what of it is the host."""
    yield from title("ADDRESSES")
    yield from paragraphs(
        "The guest gets address, mask or prefix and gateway of the interface with the default route, for IPv4 and IPv6"
        " by themselves, unless options say otherwise. In a new namespace the interface has them when *COMMAND* starts,"
        " with all other addresses and routes of the host's interface; in one that is joined, with `--config-net`, when"
        " the program goes into the background. Besides, DHCP, DHCPv6 and router advertisements tell them to whoever"
        " asks. A change of the host's network is followed, as far as the guest asks.",
        "Programs in the namespace read the host's */etc/resolv.conf*, as long as they share its files: so DHCP tells"
        " nameservers and search domains only with `--dhcp-dns` and `--dhcp-search`. A nameserver at the host's"
        " loopback, such as 127.0.0.53, is found at the namespace's by `-U` *auto* and `-T` *auto*; another address for"
        " the host's nameserver is `--dns-forward`.",
        "Since the guest has the host's address, the host has others for the guest: what it sends to its gateway's"
        " address goes to the host's loopback, 127.0.0.1 or ::1 (`--map-host-loopback`, `--no-map-gw`), and what it"
        " sends to the address of `--map-guest-addr` to the host's own one. Connections to forwarded ports"
        " that come from the host itself, and go by the interface, seem to come from the address that stands for it,"
        " or else the gateway's.",
        "A host without any default route gives its guest local mode: 169.254.2.1, with gateway 169.254.2.2, and a"
        " link-local IPv6 address with gateway fe80::1.",
    )


def local_connections() -> Iterator[str]:
    """The bypass."""
    yield from title("LOCAL CONNECTIONS")
    yield from paragraphs(
        "Connections from the host's loopback to forwarded ports, and those from the namespace's loopback to ports of"
        " `--tcp-ns` and `--udp-ns`, go from socket to socket, past the interface. The former arrive at the guest's"
        " own address, or, with `--host-lo-to-ns-lo`, at its loopback, so that a server is reached that listens at"
        " 127.0.0.1 only. With `--no-splice` they go by the interface as all others do."
    )


def process() -> Iterator[str]:
    """Exit status, files, signals."""
    yield from title("EXIT STATUS")
    yield from tagged("That of *COMMAND*", "It has ended; 128 + *N* if by signal *N*.")
    yield from tagged("126, 127", "*COMMAND* can't be executed, or is not there.")
    yield from tagged("0", "Ready, in the background; or ended in order, in foreground, with a *PID* or `--netns`.")
    yield from tagged("1", "Wrong usage, or something can't be opened; standard error says what, in one line.")
    yield from title("FILES")
    yield from tagged("*/run/netns/NAME*", "The namespace of `--netns` *NAME*, as ip-netns(8) has it.")
    yield from tagged(
        "*/dev/net/tun*", "The interface is made by it: whoever starts the program has to be allowed to open it."
    )
    yield from tagged("*/etc/resolv.conf*", "Nameservers and search list, read again when it changes.")
    yield from tagged("*/dev/log*", "Where the log goes in the background, unless there is a `--log-file`.")
    yield from title("SIGNALS")
    yield from tagged(
        "`SIGTERM`, `SIGINT`, `SIGQUIT`, `SIGHUP`",
        "With a *COMMAND*, they are passed on to it. Else the end, in order, with exit status 0.",
    )
    yield from tagged(
        "`SIGUSR1`",
        "A table of the guest's connections and of counters goes to the log, as with trio-passt(1).",
    )


def examples() -> Iterator[str]:
    """New and old namespaces, containers."""
    yield from title("EXAMPLES")
    yield from paragraphs("One command with a network of its own, and a shell:")
    yield from example("trio-pasta curl https://example.org/", "trio-pasta")
    yield from paragraphs("A server that is reached at the host's port 8080, and by nobody else at any port:")
    yield from example("trio-pasta -t 8080:80 -u none -T none -U none -- ./server --port 80")
    yield from paragraphs("A namespace that is there:")
    yield from example("unshare -rUn sleep 1d &", "trio-pasta --config-net $!")
    yield from paragraphs(
        "Containers of Podman, which finds its network helper by the name *pasta* in the directories of"
        " *helper_binaries_dir* (containers.conf(5)):"
    )
    yield from example(
        "ln -s $(command -v trio-pasta) /usr/local/libexec/podman/pasta", "podman run --network=pasta ..."
    )


def notes() -> Iterator[str]:
    """What the host has to permit."""
    yield from title("NOTES")
    yield from tagged(
        "Ports below 1024",
        "An ordinary user may open them if the sysctl *net.ipv4.ip_unprivileged_port_start* is lower, or the program"
        " has the capability `CAP_NET_BIND_SERVICE`. It is all that root keeps, with *auto*, when it goes on as"
        " *nobody*.",
    )
    yield from tagged(
        "User namespaces",
        "An ordinary user has to be allowed to make them: *user.max_user_namespaces*, and on some systems"
        " *kernel.unprivileged_userns_clone* or *kernel.apparmor_restrict_unprivileged_userns*.",
    )
    yield from tagged(
        "Ping",
        "What the guest pings is pinged by the host, for which a group of the process has to be in the sysctl"
        " *net.ipv4.ping_group_range*. If it is not, the guest can ping its gateway's address only.",
    )
