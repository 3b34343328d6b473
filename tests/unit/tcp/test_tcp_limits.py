"""At a limit a SYN is refused, with one line in the log now and then, and nothing else suffers."""

import os
import resource
from functools import partial
from pathlib import Path

import pytest
import trio
from harness.noise import noise
from harness.stage import V4, Family, Stage, network, on_stage
from trio.testing import wait_all_tasks_blocked

from trio_passt import daemon
from trio_passt.config import Attachment, Config, Protocol
from trio_passt.host.seldom import WARN_EVERY_S
from trio_passt.wire.tcp import ACK, FIN, RST, SYN

pytestmark = pytest.mark.usefixtures("standing_clock")


async def is_refused(guest: Stage, family: Family, port: int) -> None:
    """The guest opens a connection, and it is refused."""
    tcp = guest.tcp(family, port)
    tcp.sends(SYN, mss=1460)
    await tcp.expects(RST | ACK, seq=0)
    await tcp.expects_nothing()


async def test_flow_limit(family: Family, caplog: pytest.LogCaptureFixture) -> None:
    async with on_stage(flow_limit=2) as guest:
        server = guest.host_serves(family)
        first, first_host = await guest.connected(family, server=server, window=1_000_000)
        second, second_host = await guest.connected(family, server=server)
        for _ in range(5):
            await is_refused(guest, family, server.port)
        client = guest.host_connects(family, guest.forwards(Protocol.TCP, 80))
        await client.is_reset()
        assert [record.getMessage() for record in caplog.records] == ["limit of 2 TCP flows reached, refusing new ones"]

        upload, download = noise(300_000, 1), noise(300_000, 2)  # the others go on
        async with trio.open_nursery() as nursery:
            nursery.start_soon(first_host.sends_all, download)
            nursery.start_soon(first.expects_data, download)
            nursery.start_soon(second_host.receives, upload)
            nursery.start_soon(second.uploads, upload)

        await guest.passes(WARN_EVERY_S)
        for _ in range(3):
            await is_refused(guest, family, server.port)
        assert len(caplog.records) == 2

        first.sends(FIN | ACK)
        await first.expects(ACK)
        first_host.half_closes()
        await first.expects(FIN | ACK)
        first.sends(ACK)
        await guest.settles()
        await guest.connected(family, server=server)
        await is_refused(guest, family, server.port)


async def test_repeated_syn_of_a_connection_that_is_there_is_not_refused() -> None:
    async with on_stage(flow_limit=1) as guest:
        tcp = guest.tcp(V4, guest.host_serves(V4).port)
        syn = tcp.segment(SYN, mss=1460)
        tcp.sends_batch(syn)
        await tcp.expects(SYN | ACK)
        tcp.sends_batch(syn)
        await tcp.expects(SYN | ACK)


class Exhausted:
    """Within this context no descriptor can be had: those in use are as many as there may be."""

    def __enter__(self) -> None:
        self._limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        highest = max(map(int, os.listdir("/proc/self/fd")))
        taken = []
        while (descriptor := os.open("/dev/null", os.O_RDONLY)) <= highest:
            taken.append(descriptor)
        os.close(descriptor)
        self._taken = taken
        resource.setrlimit(resource.RLIMIT_NOFILE, (descriptor, self._limits[1]))

    def __exit__(self, *_exception: object) -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, self._limits)
        for descriptor in self._taken:
            os.close(descriptor)


async def test_no_descriptors_left(guest: Stage, family: Family, caplog: pytest.LogCaptureFixture) -> None:
    server = guest.host_serves(family)
    tcp, host = await guest.connected(family, server=server, window=1_000_000)
    with Exhausted():
        for _ in range(5):
            await is_refused(guest, family, server.port)
        assert len(guest.dispatcher.tcp) == 1
        upload, download = noise(300_000, 1), noise(300_000, 2)  # nothing else suffers
        async with trio.open_nursery() as nursery:
            nursery.start_soon(host.sends_all, download)
            nursery.start_soon(tcp.expects_data, download)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(host.receives, upload)
            nursery.start_soon(tcp.uploads, upload)
        assert len(caplog.records) == 1
        assert "Too many open files" in caplog.text
        await guest.passes(WARN_EVERY_S)
        await is_refused(guest, family, server.port)
        assert len(caplog.records) == 2
    await guest.connected(family, server=server)


async def test_daemon_starts_with_all_descriptors_that_it_may_have(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(512, soft), hard))
    when_ready = []

    def on_ready(_path: object, _forwards: object) -> None:
        when_ready.append(resource.getrlimit(resource.RLIMIT_NOFILE))

    config = Config(network=network(), attachment=Attachment(socket_path=tmp_path / "socket"))
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(daemon.run, config, on_ready=on_ready))
            await wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert when_ready == [(hard, hard)]


async def test_flow_limit_unless_told_otherwise() -> None:
    assert Config(network=network()).flow_limit == 65536


async def test_descriptor_comes_back_while_the_others_are_in_use(guest: Stage) -> None:
    server = guest.host_serves(V4)
    tcp, host = await guest.connected(server=server)
    with Exhausted():
        await is_refused(guest, V4, server.port)
        tcp.sends(RST)
        await host.is_reset()
        host.close()
        other = guest.tcp(V4, server.port)
        other.sends(SYN, mss=1460)
        await other.expects(SYN | ACK)
