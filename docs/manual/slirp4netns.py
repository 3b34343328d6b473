"""The page of `trio-slirp4netns`."""

from collections.abc import Iterator

from manual.options import options
from manual.roff import example, head, page, paragraphs, see_also, tagged, title

from trio_passt.slirp4netns.option_table import SECTIONS


def slirp4netns() -> str:
    """The whole page."""
    return page(
        head(
            "trio-slirp4netns",
            "network for namespaces, for callers of slirp4netns",
            "[*OPTION*]... *PID*|*PATH* [*TAPNAME*]",
        ),
        description(),
        options(SECTIONS, others=("TAPNAME",)),
        addresses(),
        api_socket(),
        process(),
        examples(),
        see_also("slirp4netns(1)", "trio-pasta(1)", "rootlesskit(1)", "network_namespaces(7)", "user_namespaces(7)"),
    )


def description() -> Iterator[str]:
    """What it is."""
    yield from title("DESCRIPTION")
    yield from paragraphs(
        "`trio-slirp4netns` has the command line, the addresses and the API socket of slirp4netns(1), version 1.2, so"
        " that programs can use it which know how to call that. What does the work is the daemon of trio-pasta(1):"
        " connections of the guest, which is what runs in the namespace, become ordinary sockets of the host; there is"
        " no second TCP/IP stack.",
        "It runs in foreground until it gets a signal, the interface is gone, or `--exit-fd` has an event.",
    )


def addresses() -> Iterator[str]:
    """Who is who."""
    yield from title("ADDRESSES")
    yield from paragraphs("The network is the guest's own, not the host's. By default:")
    yield from tagged(
        "10.0.2.100",
        "The guest. DHCP gives it this address, too. With `--enable-ipv6` also fd00::100.",
    )
    yield from tagged(
        "10.0.2.2",
        "The gateway, and the host: its loopback, unless `--disable-host-loopback` is given. With `--enable-ipv6` also"
        " fd00::2.",
    )
    yield from tagged(
        "10.0.2.3",
        "The host's nameserver, TCP and UDP, unless `--disable-dns` is given. With `--enable-ipv6` also fd00::3.",
    )
    yield from paragraphs(
        "Connections to forwarded ports have their real source address; those from the host itself come from 10.0.2.2."
    )


def api_socket() -> Iterator[str]:
    """Requests and replies."""
    yield from title("API SOCKET")
    yield from paragraphs(
        "A client connects to the socket of `--api-socket`, sends one request of less than 4096 bytes, shuts the"
        " connection down for writing, and reads one reply. Both are JSON. The socket is its owner's only."
    )
    yield from tagged("`add_hostfwd`", "Forward a port of the host to the guest:")
    yield from example(
        '{"execute": "add_hostfwd", "arguments": {"proto": "tcp", "host_addr": "0.0.0.0",',
        '"host_port": 8080, "guest_addr": "10.0.2.100", "guest_port": 80}}',
        '{"return":{"id":1}}',
    )
    yield from paragraphs(
        "*proto* is `tcp` or `udp`. Without *host_addr* it is 0.0.0.0. The only *guest_addr* is that of the guest,"
        " which is the default."
    )
    yield from tagged("`list_hostfwd`", "All that are forwarded:")
    yield from example(
        '{"execute": "list_hostfwd"}',
        '{"entries":[{"id":1,"proto":"tcp","host_addr":"0.0.0.0","host_port":8080,',
        '"guest_addr":"10.0.2.100","guest_port":80}],"return":{"entries":[...]}}',
    )
    yield from paragraphs(
        "The entries are there twice, as the manual of slirp4netns has them, and as slirp4netns itself has them."
    )
    yield from tagged("`remove_hostfwd`", "Forward it no more; connections go on:")
    yield from example('{"execute": "remove_hostfwd", "arguments": {"id": 1}}', '{"return":{}}')
    yield from paragraphs("What can't be done is answered so, and nothing has changed:")
    yield from example('{"error":{"desc":"bad request: add_hostfwd: bad arguments.host_port"}}')
    yield from paragraphs(
        "Other requests and all traffic go on meanwhile. Of 64 clients the one that has been there for longest has to"
        " go for another, and none stays for more than 10 seconds."
    )


def process() -> Iterator[str]:
    """Exit status and signals."""
    yield from title("EXIT STATUS")
    yield from tagged("0", "Ended by a signal, by `--exit-fd`, or since the interface is gone.")
    yield from tagged("1", "Wrong usage, or something can't be opened; standard error says what, in one line.")
    yield from title("SIGNALS")
    yield from tagged("`SIGTERM`, `SIGINT`, `SIGQUIT`, `SIGHUP`", "The end, in order; the API socket is removed.")
    yield from tagged("`SIGUSR1`", "A table of the guest's connections goes to the log, as with trio-passt(1).")


def examples() -> Iterator[str]:
    """By hand, and for its callers."""
    yield from title("EXAMPLES")
    yield from paragraphs("A namespace with a network:")
    yield from example(
        "unshare --user --map-root-user --net --mount sleep 1d &",
        "trio-slirp4netns --configure --mtu=65520 --disable-host-loopback $! tap0",
    )
    yield from paragraphs("Callers look for a program that is called *slirp4netns*, or are told where it is:")
    yield from example(
        "rootlesskit --net=slirp4netns --slirp4netns-binary=trio-slirp4netns ...",
        "ln -s $(command -v trio-slirp4netns) /usr/local/bin/slirp4netns",
    )
