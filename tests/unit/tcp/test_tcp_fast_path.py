"""The fast paths of a batch, by what a connection makes of it: joined segments do the same as frames one by one.

Two connections with the same numbers get the same batches, one through `wire.coalesce` and `wire.plain`, the other
through neither.  What comes out at the guest must be the same segment by segment, and at the host byte by byte.
"""

from functools import partial

import pytest
import trio
from attrs import define, field
from harness.noise import noise
from harness.stage import V4, V6, Family, Stage, on_stage
from harness.tcp import GuestTcp, HostSocket
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from trio_passt import dispatch
from trio_passt.tcp import handshake, seq, timeouts
from trio_passt.wire import plain
from trio_passt.wire.coalesce import Item
from trio_passt.wire.frames import FrameBatch
from trio_passt.wire.tcp import ACK, FIN, PSH, TcpSegment

MSS = 1000
START = 2**32 - 20_000
"""Of both sides' data; the numbers wrap in the middle."""

UPLOAD = noise(60_000, 1)
DOWNLOAD = noise(60_000, 2)


@define
class GuestSide:
    """What the guest has in mind: how far it has sent, what it has received, and the batch that it puts together."""

    sent: int = 0
    acknowledged: int = 0
    window: int = 512
    has_ended: bool = False
    has_left_a_gap: bool = False
    batch: list[TcpSegment] = field(factory=list)

    def segment(self, at: int, size: int, flags: int = ACK) -> None:
        payload = UPLOAD[at : at + size]
        number, ack = seq.add(START, at), seq.add(START, self.acknowledged)
        self.batch.append(TcpSegment(0, 0, number, ack, flags, self.window, payload))


STEPS = ("data", "push", "again", "gap", "ack", "duplicate", "window", "small", "fin", "mixed")
AFTER_THE_END = ("again", "ack", "duplicate", "window")

batches = st.lists(
    st.lists(st.tuples(st.sampled_from(STEPS), st.integers(1, 25), st.integers(0, 5)), min_size=1, max_size=6),
    min_size=1,
    max_size=6,
)


def put_together(guest: GuestSide, script: list[tuple[str, int, int]], received: int) -> list[TcpSegment]:
    """One batch; `received` is how much has come to the guest, which may be acknowledged."""
    guest.batch = []
    for step, times, value in script:
        for _ in range(times):
            match "fin" if guest.has_ended and step not in AFTER_THE_END else step:
                case "data" | "push":
                    guest.segment(guest.sent, MSS, ACK | (PSH if step == "push" else 0))
                    guest.sent = min(guest.sent + MSS, len(UPLOAD))
                case "small":
                    guest.segment(guest.sent, value + 1)
                    guest.sent = min(guest.sent + value + 1, len(UPLOAD))
                case "again":
                    guest.segment(max(guest.sent - (value + 1) * MSS, 0), MSS)
                case "gap":
                    guest.has_left_a_gap = True
                    guest.segment(min(guest.sent + (value + 1) * MSS, len(UPLOAD)), MSS)
                case "ack":
                    guest.acknowledged = min(guest.acknowledged + value * 700, received)
                    guest.segment(guest.sent, 0)
                case "duplicate":
                    guest.segment(guest.sent, 0)
                case "window" if not guest.has_left_a_gap:  # else it is older than the window that came before
                    guest.window = 300 + (guest.window + value) % 300
                    guest.segment(guest.sent, 0)
                case "mixed":
                    guest.acknowledged = min(guest.acknowledged + value * 700, received)
                    guest.segment(guest.sent, 100)
                    guest.sent = min(guest.sent + 100, len(UPLOAD))
                case "fin":
                    guest.segment(guest.sent, 10, FIN | ACK)
                    guest.has_ended = True
    return guest.batch


@define
class Outcome:
    """What came out of one connection."""

    to_guest: list[tuple[object, ...]] = field(factory=list)
    to_host: bytearray = field(factory=bytearray)
    is_at_end: bool = False


async def play(stage: Stage, family: Family, script: list[list[tuple[str, int, int]]]) -> Outcome:
    """The whole script, and what came of it."""
    tcp, host = await stage.connected(family, mss=MSS, initial_seq=START - 1, window=65535)
    assert tcp.next == tcp.expected == START
    host.sends(DOWNLOAD)
    outcome, guest = Outcome(), GuestSide()
    received = await look(tcp, host, outcome, 0)
    for steps in script:
        segments = put_together(guest, steps, received)
        tcp.sends_batch(
            *(segment._replace(source_port=tcp.guest_port, destination_port=tcp.port) for segment in segments)
        )
        received = await look(tcp, host, outcome, received)
    await stage.passes(0.5)
    await look(tcp, host, outcome, received)
    return outcome


async def look(tcp: GuestTcp, host: HostSocket, outcome: Outcome, received: int) -> int:
    """Everything that came to either side; how much the guest has of the download, in order."""
    while (got := await tcp.arrives_or_none()) is not None:
        outcome.to_guest.append((seq.distance(START, got.seq), seq.distance(START, got.ack), got.flags, got.payload))
        begin = seq.distance(START, got.seq)
        if begin <= received:
            received = max(received, begin + len(got.payload))
    while (data := try_to_read(host)) is not None:
        outcome.to_host += data
        if not data:
            outcome.is_at_end = True
            break
    return received


def try_to_read(host: HostSocket) -> bytes | None:
    try:
        return host.socket.recv(65536)
    except BlockingIOError:
        return None


async def both(family: Family, script: list[list[tuple[str, int, int]]]) -> tuple[Outcome, Outcome]:
    """The fast paths' outcome, and the plain one's."""
    outcomes = []
    for is_fast in (True, False):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(handshake, "initial_sequence", lambda *_: START - 1)
            patch.setattr(timeouts, "NEAR_PEER_RTT_S", float("inf"))
            if not is_fast:
                patch.setattr(dispatch, "coalesce", frame_by_frame)
                patch.setattr(plain, "parse", lambda _frame: None)
            async with on_stage() as stage:
                outcomes.append(await play(stage, family, script))
    return outcomes[0], outcomes[1]


def frame_by_frame(batch: FrameBatch) -> list[Item]:
    return list(batch)


@settings(deadline=None, max_examples=15, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(st.sampled_from([V4, V6]), batches)
def test_any_batches_do_the_same_to_a_connection(family: Family, script: list[list[tuple[str, int, int]]]) -> None:
    fast, slow = trio.run(partial(both, family, script), clock=MockClock())
    assert fast.to_host == slow.to_host == UPLOAD[: len(slow.to_host)]
    assert fast.is_at_end == slow.is_at_end
    assert fast.to_guest == slow.to_guest
