"""The end of a stream link, as it is told to who waits for its descriptor."""

import select
import socket

import pytest
from check_link import frame_of

from trio_passt.link.base import LinkClosed
from trio_passt.link.stream import StreamLink
from trio_passt.wire import framing
from trio_passt.wire.frames import PREFIX, single


async def test_link_that_closed_while_writing_is_not_full() -> None:
    ours, theirs = socket.socketpair()
    link = StreamLink(ours)
    theirs.close()
    assert link.send([single(frame_of(1))]) == 1
    assert not link.is_full
    link.close()


async def test_broken_framing_behind_a_good_frame_is_noticed_by_who_waits_for_the_descriptor() -> None:
    ours, theirs = socket.socketpair()
    link = StreamLink(ours)
    theirs.sendall(framing.join([frame_of(1)]).data + PREFIX.pack(3) + bytes(20))
    watch = select.poll()
    watch.register(ours, select.POLLIN)
    batch = link.receive_now()
    assert batch is not None
    assert len(batch) == 1
    assert watch.poll(100)
    with pytest.raises(LinkClosed, match="framing"):
        link.receive_now()
    link.close()
    theirs.close()
