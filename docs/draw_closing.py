"""Print the state diagrams of `docs/tcp-closing.md`, drawn from the tables of `trio_passt.tcp.closing`.

`python docs/draw_closing.py` prints the page's text; a unit test compares it with the page that is there.
"""

from enum import Enum

from trio_passt.tcp import closing

HEAD = """\
# How a connection closes

Drawn from the tables in [`trio_passt/tcp/closing.py`](../trio_passt/tcp/closing.py) by
[`draw_closing.py`](draw_closing.py); a test keeps them the same. The eleven states of RFC 9293 section 3.3.2 are the
product of two short tables, one for each direction. A connection is over when both directions are *acknowledged*; a
reset, from either side, ends it in any state.
"""


def diagram(table: dict[tuple[Enum, closing.Event], Enum], first: Enum, last: Enum) -> str:
    """A table as a Mermaid state diagram."""
    lines = ["```mermaid", "stateDiagram-v2", f"    [*] --> {first.value}"]
    lines += [f"    {state.value} --> {after.value}: {event.value}" for (state, event), after in table.items()]
    lines += [f"    {last.value} --> [*]", "```"]
    return "\n".join(lines)


def page() -> str:
    """The whole page."""
    from_guest, to_guest = closing.FromGuestState, closing.ToGuestState
    return "\n".join(
        [
            HEAD,
            "## From the guest to the host",
            "",
            diagram(dict(closing.FROM_GUEST_TABLE), from_guest.OPEN, from_guest.ACKNOWLEDGED),
            "",
            "## From the host to the guest",
            "",
            diagram(dict(closing.TO_GUEST_TABLE), to_guest.OPEN, to_guest.ACKNOWLEDGED),
            "",
        ]
    )


if __name__ == "__main__":
    print(page(), end="")
