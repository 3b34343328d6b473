"""`CapturingLink`: the contract again, and the file that it leaves, as scapy and tshark read it."""

import logging
import os
import resource
import shutil
import socket
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from check_link import FillingLinkContract, Guest, frame_of, run_of
from scapy.utils import RawPcapReader
from test_link_memory import MemoryGuest

from trio_passt.errors import StartupError
from trio_passt.link.base import Link
from trio_passt.link.capture import Capture, CapturingLink, open_capture
from trio_passt.link.memory import MemoryLink
from trio_passt.link.stream import StreamLink
from trio_passt.wire import framing
from trio_passt.wire.frames import MAX_FRAME_BYTES, Offload, single


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "guest.pcap"


@pytest.fixture
def capture(path: Path) -> Iterator[Capture]:
    capture = open_capture(path, now_ns=lambda: 1_700_000_000_000_000_123)
    yield capture
    capture.close()
    capture.close()


def read(path: Path) -> list[bytes]:
    with RawPcapReader(str(path)) as reader:
        return [data for data, _ in reader]


class TestContract(FillingLinkContract):
    @pytest.fixture(autouse=True)
    def _with_a_file(self, capture: Capture) -> None:
        self.capture = capture

    def make(self) -> tuple[Link, Guest]:
        link = MemoryLink(capacity_frames=30)
        return CapturingLink(link, self.capture), MemoryGuest(link)


async def test_records_both_directions_in_order(path: Path, capture: Capture) -> None:
    inner = MemoryLink()
    link = CapturingLink(inner, capture)
    assert link.capabilities == inner.capabilities
    inner.push([frame_of(1), frame_of(2)])
    await link.receive_batch()
    link.send([single(frame_of(3)[:20], frame_of(3)[20:], offload=Offload(34, 16)), run_of([frame_of(4), frame_of(5)])])
    assert read(path) == [frame_of(number) for number in range(1, 6)], "readable while the capture goes on"
    with RawPcapReader(str(path)) as reader:
        assert {(meta.sec, meta.usec) for _, meta in reader} == {(1_700_000_000, 123)}


async def test_records_what_is_received_without_waiting(path: Path, capture: Capture) -> None:
    inner = MemoryLink()
    link = CapturingLink(inner, capture)
    assert link.receive_now() is None
    inner.push([frame_of(1), frame_of(2)])
    batch = link.receive_now()
    assert batch is not None
    assert list(map(bytes, batch)) == read(path) == [frame_of(1), frame_of(2)]


async def test_gathered_frames_are_in_the_record_once(path: Path, capture: Capture) -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        link = CapturingLink(StreamLink(ours), capture)
        assert link.fileno() == ours.fileno()
        link.gather()
        for number in range(3):
            link.send([single(frame_of(number))])
        theirs.setblocking(False)
        with pytest.raises(BlockingIOError):
            theirs.recv(1)
        link.release()
        assert theirs.recv(1000) == framing.join(read(path)).data
        assert read(path) == [frame_of(number) for number in range(3)]
        link.close()


async def test_records_only_what_the_link_took(path: Path, capture: Capture) -> None:
    inner = MemoryLink(capacity_frames=4)
    link = CapturingLink(inner, capture)
    assert link.send([single(frame_of(1)), run_of([frame_of(number) for number in range(2, 9)])]) == 4
    assert link.send([single(frame_of(9))]) == 0
    assert read(path) == inner.take_sent() == [frame_of(number) for number in range(1, 5)]


async def test_one_file_for_all_guests(path: Path, capture: Capture) -> None:
    for number in (1, 2):
        link = CapturingLink(MemoryLink(), capture)
        link.send([single(frame_of(number))])
        link.close()
    assert read(path) == [frame_of(1), frame_of(2)]


def test_only_the_owner_may_read_it(path: Path) -> None:
    before = os.umask(0)
    try:
        open_capture(path).close()
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_an_older_file_is_replaced(path: Path) -> None:
    path.write_bytes(bytes(1000))
    open_capture(path).close()
    assert read(path) == []


def test_file_that_cannot_be_made(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match=f"{tmp_path}/none/x.pcap: No such file or directory"):
        open_capture(tmp_path / "none/x.pcap")
    with pytest.raises(StartupError, match="Is a directory"):
        open_capture(tmp_path)


async def test_full_disk_ends_the_capture_and_nothing_else(
    path: Path, capture: Capture, caplog: pytest.LogCaptureFixture
) -> None:
    """The file keeps whole records only."""
    inner = MemoryLink()
    link = CapturingLink(inner, capture)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        for number in range(20):
            assert link.send([single(frame_of(number, 1500))]) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert len(inner.take_sent()) == 20
    assert read(path) == [frame_of(number, 1500) for number in range(6)]
    messages = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert messages == [f"the capture to {path} ends here: File too large"]


def test_device_without_room(caplog: pytest.LogCaptureFixture) -> None:
    capture = open_capture(Path("/dev/full"))
    capture.record([frame_of(1)])
    assert [record.getMessage() for record in caplog.records] == [
        "the capture to /dev/full ends here: No space left on device"
    ]


@pytest.mark.skipif(shutil.which("tshark") is None, reason="tshark is not installed")
def test_tshark_reads_it(path: Path, capture: Capture) -> None:
    largest = b"\xff" * 6 + b"\x02" * 6 + b"\x88\xb5" + bytes(MAX_FRAME_BYTES - 14)
    capture.record([b"\xff" * 6 + b"\x02" * 6 + b"\x88\xb5" + bytes(46), largest])
    fields = ["-T", "fields", "-e", "frame.len", "-e", "frame.cap_len", "-e", "frame.time_epoch", "-e", "eth.type"]
    done = subprocess.run(
        ["tshark", "-r", str(path), *fields],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "TZ": "UTC"},
    )
    lines = [line.split("\t") for line in done.stdout.splitlines()]
    assert [line[:2] for line in lines] == [["60", "60"], [str(MAX_FRAME_BYTES)] * 2]
    assert all("1700000000.000000123" in line[2] or ".000000123" in line[2] for line in lines)
    assert all(line[3] == "0x88b5" for line in lines)
