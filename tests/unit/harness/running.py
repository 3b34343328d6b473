"""The daemon as a whole, in the test's own process, and guests at stream sockets, as QEMU is one."""

import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from harness.oracle import SeenTcp, see
from harness.stage import GUEST_MAC, Family, frame_of, segment_packet
from harness.waiting import eventually
from trio_passt import daemon
from trio_passt.config import Config
from trio_passt.host.watch import HostWatch
from trio_passt.wire.ip import IPProtocol
from trio_passt.wire.tcp import TcpSegment

if TYPE_CHECKING:
    from trio_typing import TaskStatus


class StreamGuest:
    """A guest at a stream socket, as QEMU is one."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._received = b""
        sock.setblocking(False)

    @classmethod
    def at(cls, path: Path) -> "StreamGuest":
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(os.fspath(path))
        return cls(sock)

    def sends(self, *frames: bytes) -> None:
        self._socket.sendall(b"".join(len(frame).to_bytes(4, "big") + frame for frame in frames))

    def sends_segment(self, family: Family, segment: TcpSegment) -> None:
        self.sends(frame_of(segment_packet(family, segment)))

    async def frame(self) -> bytes:
        """The next frame."""

        def look() -> bytes | None:
            with suppress(BlockingIOError):
                self._received += self._socket.recv(1 << 20)
            length = int.from_bytes(self._received[:4], "big")
            if len(self._received) < max(5, 4 + length):
                return None
            frame, self._received = self._received[4 : 4 + length], self._received[4 + length :]
            return frame

        return await eventually(look, "a frame")

    async def segment(self, family: Family) -> TcpSegment:
        """The next TCP segment, whatever else comes before."""
        while True:
            frame = await self.frame()
            protocol_at = 23 if family.version == 4 else 20
            if frame[12:14] == frame_of(bytes([family.version << 4]))[12:14] and frame[protocol_at] == IPProtocol.TCP:
                seen = see(frame, GUEST_MAC.hex(":"))
                assert isinstance(seen, SeenTcp)
                return seen.segment

    async def is_turned_away(self) -> None:
        """The other end closes at once."""

        def look() -> bool | None:
            try:
                return self._socket.recv(1) == b"" or None
            except ConnectionResetError:
                return True
            except BlockingIOError:
                return None

        assert await eventually(look, "the end of the connection")

    def leaves(self) -> None:
        self._socket.close()


class Running:
    """A daemon that runs in the test's own process."""

    def __init__(self) -> None:
        self.path: Path | None = None
        self.ended = False

    def on_ready(self, path: Path | None, _forwards: object) -> None:
        self.path = path


@asynccontextmanager
async def running(config: Config, watch: HostWatch | None = None) -> AsyncIterator[Running]:
    """The daemon, ready; whatever the test does, it is ended afterwards."""
    running = Running()

    async def run(task_status: "TaskStatus[None]") -> None:
        def on_ready(path: Path | None, forwards: object) -> None:
            running.on_ready(path, forwards)
            task_status.started()

        await daemon.run(config, on_ready=on_ready, watch=watch)
        running.ended = True

    async with trio.open_nursery() as nursery:
        await nursery.start(run)
        try:
            yield running
        finally:
            nursery.cancel_scope.cancel()


async def ends(running: Running) -> None:
    await eventually(lambda: running.ended or None, "the daemon's end")
