"""Names of states: the guest's end's, by RFC 9293 section 3.3.2."""

import itertools

import pytest

from trio_passt.tcp import states
from trio_passt.tcp.closing import FromGuestState as From
from trio_passt.tcp.closing import ToGuestState as To


@pytest.mark.parametrize(
    ("story", "names"),
    [
        # The guest closes first: figure 12, TCP Peer A.
        (
            [(From.OPEN, To.OPEN), (From.RECEIVED, To.OPEN), (From.DELIVERED, To.OPEN)],
            "ESTABLISHED FIN-WAIT-1 FIN-WAIT-1",
        ),
        ([(From.ACKNOWLEDGED, To.OPEN), (From.ACKNOWLEDGED, To.DUE)], "FIN-WAIT-2 FIN-WAIT-2"),
        ([(From.ACKNOWLEDGED, To.SENT), (From.ACKNOWLEDGED, To.ACKNOWLEDGED)], "FIN-WAIT-2 TIME-WAIT"),
        # It closes second: TCP Peer B.
        ([(From.OPEN, To.DUE), (From.OPEN, To.SENT), (From.OPEN, To.ACKNOWLEDGED)], "CLOSE-WAIT CLOSE-WAIT CLOSE-WAIT"),
        ([(From.RECEIVED, To.ACKNOWLEDGED), (From.DELIVERED, To.ACKNOWLEDGED)], "LAST-ACK LAST-ACK"),
        # Both at once: figure 13.
        ([(From.RECEIVED, To.SENT), (From.DELIVERED, To.SENT)], "CLOSING CLOSING"),
        ([(From.RECEIVED, To.DUE), (From.DELIVERED, To.DUE)], "FIN-WAIT-1 FIN-WAIT-1"),
    ],
)
def test_names(story: list[tuple[From, To]], names: str) -> None:
    assert [states.name(*pair) for pair in story] == names.split()


def test_each_pair_has_one() -> None:
    assert len({states.name(*pair) for pair in itertools.product(From, To)}) == 7
