"""`trio-passt` with a daemon that does what its first argument says; the rest is the command line."""

import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import trio

from trio_passt.cli.main import main
from trio_passt.config import Config, PortForward
from trio_passt.errors import StartupError
from trio_passt.host.watch import HostWatch

BEHAVIOUR = sys.argv[1]


def open_terminal(report: Path) -> None:
    _, terminal = os.openpty()
    os.open(os.ttyname(terminal), os.O_RDWR)  # without O_NOCTTY
    report.write_text(Path("/proc/self/stat").read_text())


async def run(
    config: Config,
    *,
    on_open: Callable[[], None],
    on_ready: Callable[[Path | None, Sequence[PortForward]], None],
    watch: HostWatch,
    namespace: object,
) -> int:
    if BEHAVIOUR == "hangs":
        os.write(2, b"hanging\n")
        await trio.sleep_forever()
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        match BEHAVIOUR:
            case "is slow":
                os.write(2, b"slow\n")
                await trio.lowlevel.wait_readable(0)
            case "refuses":
                raise StartupError("port 22 of TCP can't be bound:\nPermission denied")
            case "refuses in a nursery":
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(trio.sleep_forever)
                    raise StartupError("port 22 of TCP can't be bound")
            case "is mistaken":
                raise KeyError("a mistake")
            case "is killed":
                os.kill(os.getpid(), signal.SIGKILL)
            case "ends without being ready":
                return 0
        # In a nursery, as the real one: what on_ready raises comes back in a group.
        async with trio.open_nursery():
            on_open()
            on_ready(config.attachment.socket_path or Path("/tmp/passt_1.socket"), config.forwards)
        match BEHAVIOUR:
            case "ends":
                return 0
            case "is mistaken later":
                raise KeyError("a mistake")
            case "listens at its descriptor":
                assert config.attachment.fd is not None
                os.write(config.attachment.fd, b"here")
            case "opens a terminal":
                assert config.pcap is not None
                open_terminal(config.pcap)
        async for _ in signals:
            return 0
    return 0


sys.exit(main(sys.argv[2:], run=run))
