"""What a flow says of itself when somebody asks."""

from enum import Enum

from attrs import frozen

from trio_passt.flow.key import FlowKey
from trio_passt.host.endpoint import Endpoint


class Unit(Enum):
    """What is counted."""

    BYTES = "bytes"
    DATAGRAMS = "datagrams"


@frozen
class FlowStatus:
    """A flow as it is now; `None` for what it does not know, since to count it would cost something for each packet.

    `state` is the guest's end's (RFC 9293 section 3.3.2), where the protocol has such names.  `on_host` is the other
    end of the host's socket: the remote, or who is behind its address.  `idle_s`: nothing has passed for so long.
    """

    key: FlowKey
    state: str
    is_opened_by_guest: bool
    on_host: Endpoint | None = None
    idle_s: float | None = None
    from_guest: int | None = None
    to_guest: int | None = None
    unit: Unit = Unit.BYTES
