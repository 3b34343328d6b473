"""The grammar of port specifications."""

from collections.abc import Iterator

from manual.roff import example, paragraphs, tagged, title

from trio_passt.cli.mode import Mode

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

AUTOMATIC_EXAMPLES = (
    ("auto", "every port at which something listens on the other side"),
    ("~22,auto", "the same, without 22"),
    ("8000-8010,auto", "those of the range"),
    ("127.0.0.1/auto", "all, open at this address only"),
)


def ports(mode: Mode) -> Iterator[str]:
    """The grammar of `-t` and `-u`, and in a namespace of `-T` and `-U`."""
    in_namespace = mode is Mode.NAMESPACE
    options = (
        "`--tcp-ports`, `--udp-ports`, `--tcp-ns` and `--udp-ns`" if in_namespace else "`--tcp-ports` and `--udp-ports`"
    )
    yield from title("PORT SPECIFICATIONS")
    yield from paragraphs(f"The *SPEC* of {options} is one of")
    yield from example(
        "none",
        "[WHERE/]all",
        "[WHERE/]CHUNK[,CHUNK]...",
    )
    alone = "is `auto`, or names ports," if in_namespace else "names ports,"
    yield from paragraphs(
        f"where *WHERE* is *ADDRESS*, `%`*INTERFACE*, or *ADDRESS*`%`*INTERFACE*, and a *CHUNK* {alone}"
        " *PORT*[`-`*PORT*][`:`*TARGET*[`-`*TARGET*]], or takes some out, `~`*PORT*[`-`*PORT*]. Specifications that"
        " only take out are about all other ports."
    )
    for specification, text in PORT_EXAMPLES + (AUTOMATIC_EXAMPLES if in_namespace else ()):
        yield from tagged(f"`{specification}`", text[0].upper() + text[1:] + ".")
    udp = "" if in_namespace else " UDP ports are the host's that were given with `-t`, unless there is a `-u`."
    yield from paragraphs(
        "Without *WHERE*, ports are open on all addresses of the host, in the families that the guest has. The options"
        f" may be repeated, and add up.{udp}",
        "A port that is named and can't be opened is an error, which says why, and who holds it, if that can be found."
        " Of all ports, those are left out that belong to the host's own connections"
        " (*net.ipv4.ip_local_port_range*), and those that can't be had are passed over, with one line that says how"
        " many; see also NOTES.",
    )
    if in_namespace:
        yield from paragraphs(
            "With `auto`, a port is forwarded while something listens at its target: once a second it is looked who"
            " does. These are best effort as well: what can't be opened is passed over. Ports that are named by another"
            " specification are not automatic. What listens at the namespace's loopback only is for nobody else, but"
            " with `--host-lo-to-ns-lo` for the host's loopback. `--tcp-ns` and `--udp-ns` are ports of the namespace's"
            " loopback (127.0.0.1, ::1), and their targets ports of the host's; an *ADDRESS* has to be a loopback one."
        )
