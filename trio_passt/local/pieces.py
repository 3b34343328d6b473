"""Datagrams as they lie in a buffer → what goes out with one `sendmsg`."""

from collections.abc import Iterator
from typing import NamedTuple

from trio_passt.host.datagrams import SEGMENTS_MOST, TRAIN_BYTES_MOST, train_stop
from trio_passt.wire.datagrams import Train


class Piece(NamedTuple):
    """So many `datagrams`, one after the other in `views`, to be cut into ones of `size`; 0: it is a single one."""

    views: list[memoryview]
    size: int = 0
    datagrams: int = 1

    def payloads(self) -> Iterator[memoryview]:
        """Each datagram by itself."""
        for view in self.views:
            for at in range(0, len(view), self.size) if self.size else (0,):
                yield view[at : at + self.size] if self.size else view


def pieces(buffer: memoryview, trains: list[Train], largest: int) -> Iterator[Piece]:
    """As few as possible; only datagrams of up to `largest` bytes go together."""
    at = 0
    while at < len(trains):
        train = trains[at]
        at += 1
        if _is_solid(train, largest):
            stop, count = train.start + train.size * train.datagrams, train.datagrams
            if at < len(trains) and _completes(trains[at], stop, train):
                stop, count = stop + trains[at].size, count + 1
                at += 1
            yield Piece([buffer[train.start : stop]], train.size, count)
        else:
            payloads = list(train.payloads(buffer))
            begin = 0
            while begin < len(payloads):
                end = train_stop(payloads, begin, largest)
                some = payloads[begin:end]
                yield Piece(some, len(some[0]) if len(some) > 1 else 0, len(some))
                begin = end


def _is_solid(train: Train, largest: int) -> bool:
    """Whether its datagrams lie next to each other, as the kernel has joined them."""
    _, size, count, stride = train
    return (
        1 < count < SEGMENTS_MOST and 0 < size == stride and size <= largest and size * count <= TRAIN_BYTES_MOST - size
    )


def _completes(last: Train, stop: int, train: Train) -> bool:
    """Whether it is the last, shorter one of those."""
    return last.datagrams == 1 and last.start == stop and 0 < last.size < train.size
