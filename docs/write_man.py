"""Print the manual page `docs/trio-passt.1`, whose options are those of `--help`: both read one table.

`python docs/write_man.py >docs/trio-passt.1`; a unit test compares it with the page that is there.

Text here is marked up as in Markdown, as far as that is needed: `bold` in backquotes for what is typed as it stands,
*italic* for what stands for something else.
"""

import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # the page is about the program beside it

from trio_passt.cli.getopt import Option
from trio_passt.cli.option_table import OPTIONS, SECTIONS

DATE = "2026-11-29"
WIDTH = 79
ARGUMENTS = sorted(
    {"INTERFACE"}.union(*(re.findall(r"[A-Z]+", option.argument or "") for option in OPTIONS)), key=len, reverse=True
)
"""What stands for something else in the text of an option's help."""

_SPECIAL = {"\\": r"\e", "-": r"\-", "'": r"\(aq", "`": r"\(ga", "^": r"\(ha", "~": r"\(ti", '"': r"\(dq"}
"""What roff takes for something else, and what its fonts would print in another shape (groff_char(7))."""

_MARKUP = re.compile(r"`([^`]+)`|\*([^*]+)\*")
_IN_HELP = re.compile(rf"(?P<option>--[a-z][a-z0-9-]*|(?<= )-[a-z0-9]\b)|\b(?P<argument>{'|'.join(ARGUMENTS)})\b")


def page() -> str:
    """The whole page, as roff with the macros of man(7)."""
    parts = (head(), description(), options(), ports(), addresses(), process(), examples(), notes(), see_also())
    lines = [line for part in parts for line in part]
    needed = [line for before, line in zip(["", *lines], lines, strict=False) if not _begins_twice(before, line)]
    return "\n".join(needed) + "\n"


def _begins_twice(before: str, line: str) -> bool:
    """A paragraph right below a title is one anyway."""
    return line == ".PP" and before.startswith((".SH", ".SS"))


# -- roff -------------------------------------------------------------------------------------------------------------


def literal(text: str) -> str:
    """`text` as it stands."""
    return "".join(_SPECIAL.get(character, character) for character in text)


def marked(text: str) -> str:
    """`text` with its markup as fonts."""
    out, position = "", 0
    for match in _MARKUP.finditer(text):
        out += literal(text[position : match.start()])
        out += f"\\fB{literal(match[1])}\\fR" if match[1] else f"\\fI{literal(match[2])}\\fR"
        position = match.end()
    return out + literal(text[position:])


def filled(roff: str) -> list[str]:
    """Lines of one paragraph, none of which begins like a request."""
    lines = textwrap.wrap(roff, WIDTH, break_long_words=False, break_on_hyphens=False)
    return [f"\\&{line}" if line.startswith((".", "'")) else line for line in lines]


def title(text: str) -> list[str]:
    """Of a section."""
    return [f".SH {literal(text)}" if " " not in text else f'.SH "{literal(text)}"']


def subtitle(text: str) -> list[str]:
    """Of a part of a section."""
    return [f'.SS "{literal(text)}"']


def paragraphs(*texts: str) -> Iterator[str]:
    """Each as one of its own."""
    for text in texts:
        yield from (".PP", *filled(marked(text)))


def tagged(tag: str, text: str) -> Iterator[str]:
    """A word, and what it means, further to the right."""
    yield ".TP"
    yield from (marked(tag), *filled(marked(text)))


def example(*lines: str) -> Iterator[str]:
    """Lines as they stand, in the middle of a text."""
    yield from (".PP", ".in +4n", ".EX", *map(literal, lines), ".EE", ".in")


# -- the page ---------------------------------------------------------------------------------------------------------


def head() -> Iterator[str]:
    """Up to the synopsis."""
    yield '.\\" Written by docs/write_man.py: change that, not this.'
    yield f".TH TRIO\\-PASST 1 {DATE} trio\\-passt"
    yield from title("NAME")
    yield "trio\\-passt \\- network for virtual machines, without privileges"
    yield from title("SYNOPSIS")
    yield from filled(marked("`trio-passt` [*OPTION*]..."))


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


def options() -> Iterator[str]:
    """From the table that `--help` is made from."""
    yield from title("OPTIONS")
    yield from paragraphs(
        "Arguments follow an option's long name after a blank or `=`, its short name after a blank or at once. Long"
        " names may be shortened as long as they stay unambiguous; short ones without argument may be joined. Options"
        " act in their order. Of one that is given twice the later counts, unless it says otherwise."
    )
    for section in SECTIONS:
        yield from subtitle(section.title)
        for option in section.options:
            yield from of_option(option)


def of_option(option: Option) -> Iterator[str]:
    """All its names, and its help."""
    names = ([f"-{option.short}"] if option.short else []) + [f"--{name}" for name in option.names]
    argument = f" {in_help(option.argument)}" if option.argument else ""
    yield ".TP"
    yield ", ".join(f"\\fB{literal(name)}\\fR" for name in names) + argument
    yield from filled(in_help(option.help))


def in_help(text: str) -> str:
    """The text of an option's help, with other options and arguments in their fonts."""
    out, position = "", 0
    for match in _IN_HELP.finditer(text):
        font = "B" if match["option"] else "I"
        out += literal(text[position : match.start()]) + f"\\f{font}{literal(match[0])}\\fR"
        position = match.end()
    return out + literal(text[position:])


PORT_EXAMPLES = (
    ("22", "port 22 of the host is port 22 of the guest"),
    ("22,80,443", "each of these"),
    ("2222:22", "the host's 2222 is the guest's 22"),
    ("8000-8010", "each of these"),
    ("8000-8010:9000-9010", "8000 is 9000 in the guest, and so on; both ranges are of one length"),
    ("8000-8010,~8005", "the range without 8005"),
    ("127.0.0.1/2222:22,8080", "both at this address of the host only"),
    ("[2001:db8::1]/22", "the same for IPv6; the brackets may be left out"),
    ("%eth0/22", "what comes in by the host's interface eth0 only"),
    ("192.0.2.2%eth0/22", "both; a link-local IPv6 address needs its interface"),
    ("all", "every port of the host but the ephemeral ones"),
    ("~22,~8000-8010", "the same, without these"),
    ("none", "no port"),
)


def ports() -> Iterator[str]:
    """The grammar of `-t` and `-u`."""
    yield from title("PORT SPECIFICATIONS")
    yield from paragraphs("The *SPEC* of `--tcp-ports` and `--udp-ports` is one of")
    yield from example(
        "none",
        "[WHERE/]all",
        "[WHERE/]CHUNK[,CHUNK]...",
    )
    yield from paragraphs(
        "where *WHERE* is *ADDRESS*, `%`*INTERFACE*, or *ADDRESS*`%`*INTERFACE*, and a *CHUNK* names ports,"
        " *PORT*[`-`*PORT*][`:`*TARGET*[`-`*TARGET*]], or takes some out, `~`*PORT*[`-`*PORT*]. Specifications that"
        " only take out are about all other ports."
    )
    for specification, text in PORT_EXAMPLES:
        yield from tagged(f"`{specification}`", text[0].upper() + text[1:] + ".")
    yield from paragraphs(
        "Without *WHERE*, ports are open on all addresses of the host, in the families that the guest has. The options"
        " may be repeated, and add up. UDP ports are the host's that were given with `-t`, unless there is a `-u`.",
        "A port that is named and can't be opened is an error, which says why, and who holds it, if that can be found."
        " Of all ports, those are left out that belong to the host's own connections"
        " (*net.ipv4.ip_local_port_range*), and those that can't be had are passed over, with one line that says how"
        " many; see also NOTES.",
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


def see_also() -> Iterator[str]:
    """Others."""
    yield from title("SEE ALSO")
    names = ("passt(1)", "qemu(1)", "qrap(1)", "ss(8)", "capabilities(7)", "tcp(7)", "icmp(7)")
    yield from filled(", ".join(re.sub(r"^(\w+)", lambda match: f"\\fB{match[1]}\\fR", name) for name in names))


if __name__ == "__main__":
    print(page(), end="")
