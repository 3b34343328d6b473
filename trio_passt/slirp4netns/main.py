"""The program `trio-slirp4netns`: the daemon of `trio-pasta` with another command line, and what its callers wait for.

That is a byte at `--ready-fd`, an end when `--exit-fd` says so, and answers at the API socket.
"""

import functools
import logging
import os
import select
import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from trio_passt import __version__
from trio_passt.cli.log import one_line, write_to_stderr
from trio_passt.cli.main import prepare, print_text, run_options, working_directory
from trio_passt.cli.messages import help_page
from trio_passt.cli.mode import Mode
from trio_passt.cli.options import Show
from trio_passt.cli.service_manager import Notifier
from trio_passt.cli.values import UsageError
from trio_passt.config import Config, PortForward
from trio_passt.errors import StartupError
from trio_passt.host import identity
from trio_passt.slirp4netns.option_table import FORMS, PURPOSE, SECTIONS
from trio_passt.slirp4netns.options import Asked, parse_options

if TYPE_CHECKING:
    import trio

    from trio_passt.host.listeners import PortListeners
    from trio_passt.host.watch import HostWatch
    from trio_passt.namespace.opened import OpenedNamespace

PROGRAM = Mode.SLIRP4NETNS.value

AS_VERSION = "1.2.0"
"""Of slirp4netns: what callers that look at the version may count on."""

log = logging.getLogger("trio_passt.slirp4netns")


def main(argv: Sequence[str] | None = None) -> int:
    """The whole program; `argv` is without its name.  Returns the exit status, 1 for everything that went wrong."""
    try:
        umask = prepare()
        asked = parse_options(sys.argv[1:] if argv is None else argv, working_directory())
        if isinstance(asked, Show):
            return print_text(help_text() if asked is Show.HELP else version_text())
        check_descriptors(asked)
    except (UsageError, StartupError) as error:
        write_to_stderr(one_line(f"{PROGRAM}: {error}") + "\n")
        return 1
    return run_options(asked.options, None, Notifier({}), functools.partial(run, asked), umask)


def help_text() -> str:
    """The `--help` page."""
    return help_page(PROGRAM, FORMS, PURPOSE, SECTIONS)


def version_text() -> str:
    """The `--version` page, whose first line callers read."""
    return f"slirp4netns version {AS_VERSION}\n{PROGRAM} {__version__}\n"


def check_descriptors(asked: Asked) -> None:
    """That one is not there, or can't be waited for, is found out before its number is another's.

    Raises `UsageError`, and `StartupError` where there are no means to wait.
    """
    for option, fd in (("--ready-fd", asked.ready_fd), ("--exit-fd", asked.exit_fd)):
        if fd is not None:
            try:
                os.fstat(fd)
            except OSError as error:
                raise UsageError(f"option '{option} {fd}': {error.strerror}") from error
    if asked.exit_fd is not None:
        try:
            with select.epoll() as readiness:
                readiness.register(asked.exit_fd)
        except PermissionError as error:
            raise UsageError(f"option '--exit-fd {asked.exit_fd}': a pipe or a socket is expected") from error
        except OSError as error:
            raise StartupError(f"can't wait for --exit-fd {asked.exit_fd}: {error.strerror}") from error


async def run(
    asked: Asked,
    config: Config,
    *,
    on_open: Callable[[], None],
    on_ready: Callable[[Path | None, Sequence[PortForward]], None],
    watch: "HostWatch",
    namespace: "OpenedNamespace | None",
) -> int:
    """`daemon.run`, and what else was asked for."""
    import trio

    from trio_passt import daemon

    with ExitStack() as opened:
        beside = _api(asked, opened) if asked.api_socket is not None else None

        def on_all_open() -> None:
            on_open()
            if asked.gives_up_capabilities:
                identity.give_up_capabilities(but_binding=True)

        def on_all_ready(path: Path | None, forwards: Sequence[PortForward]) -> None:
            on_ready(path, forwards)
            if asked.ready_fd is not None:
                tell_ready(asked.ready_fd)

        async with trio.open_nursery() as nursery:
            if asked.exit_fd is not None:
                nursery.start_soon(end_at, asked.exit_fd, nursery.cancel_scope)
            await daemon.run(
                config, on_open=on_all_open, on_ready=on_all_ready, watch=watch, namespace=namespace, beside=beside
            )
            nursery.cancel_scope.cancel()
    return 0


def _api(asked: Asked, opened: ExitStack) -> "Callable[[PortListeners], Awaitable[None]]":
    """The task that answers at the API socket, which is open from now on."""
    from trio_passt.slirp4netns.api import HostForwards, serve
    from trio_passt.slirp4netns.api_socket import ApiSocket

    assert asked.api_socket is not None
    api_socket = ApiSocket(asked.api_socket)
    opened.callback(api_socket.close)

    async def beside(listeners: "PortListeners") -> None:
        await serve(HostForwards(listeners, asked.guest), api_socket.socket)

    return beside


def tell_ready(fd: int) -> None:
    """Whoever waits at the other end of it goes on; one that waits no longer is no reason to end."""
    try:
        os.write(fd, b"1")
    except OSError as error:
        log.warning("can't write to --ready-fd %d: %s", fd, error.strerror)
    if fd > 2:
        os.close(fd)
    else:  # its number must not become another's
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, fd)
        os.close(null)


async def end_at(fd: int, everything: "trio.CancelScope") -> None:
    """The end, when there is an event."""
    import trio

    await trio.lowlevel.wait_readable(fd)
    log.info("ended by --exit-fd")
    everything.cancel()
