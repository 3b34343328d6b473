"""A task that Trio has taken up for the same round is not kept waiting, though Trio's statistics do not count it."""

import socket

import trio

from trio_passt.host.readiness import READABLE, Readiness


async def test_runnable_task_is_not_kept_waiting_while_nothing_happens() -> None:
    readiness = Readiness(lingers=True)
    ours, peer = socket.socketpair()
    ours.setblocking(False)
    readiness.watch(ours.fileno(), lambda _mask: ours.recv(100), events=READABLE, edge_triggered=False)
    idle = 0
    async with trio.open_nursery() as nursery:
        nursery.start_soon(readiness.run)
        for _ in range(1000):
            peer.send(b"x")
            since = trio.current_time()
            await trio.lowlevel.checkpoint()
            idle += trio.current_time() - since > 0.0009
        nursery.cancel_scope.cancel()
    readiness.close()
    ours.close()
    peer.close()
    assert idle < 50, f"{idle} of 1000 steps took a millisecond"  # 250 to 500 today
