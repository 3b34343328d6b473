"""The program: argv → exit status.

The order matters.  What can be wrong in argv is found before anything else; the fork comes before Trio; the
configuration is complete before the daemon runs; and what says "ready" to the outside (message, PID file, the
parent's exit) comes when the daemon says so.  Heavy modules are imported where they are first needed, so that
`--help` is quick.
"""

import functools
import logging
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from attrs import evolve

from trio_passt import __version__
from trio_passt.cli import background
from trio_passt.cli.configure import Configured, configure
from trio_passt.cli.log import log_to_stderr, log_to_syslog, one_line, write_to_stderr
from trio_passt.cli.messages import PROGRAM, help_text, startup_message, version_text
from trio_passt.cli.options import OPTIONS, Options, Show, parse_options
from trio_passt.cli.pid_file import PidFile
from trio_passt.cli.values import UsageError
from trio_passt.config import Config, LogLevel, PortForward
from trio_passt.errors import StartupError
from trio_passt.host.network import Host

if TYPE_CHECKING:
    from trio_passt.host.watch import HostWatch

_log = logging.getLogger(__name__)


class Run(Protocol):
    """`trio_passt.daemon.run`: returns at the daemon's orderly end, calls `on_ready` once everything is bound."""

    async def __call__(
        self, config: Config, *, on_ready: Callable[[Path | None, Sequence[PortForward]], None], watch: "HostWatch"
    ) -> None: ...


def main(argv: Sequence[str] | None = None, *, run: Run | None = None) -> int:
    """The whole program; `argv` is without its name, `run` is the daemon (the real one by default).

    Returns the exit status: 0 for a daemon that was ready and ended in order (or that is ready, in the
    background), 1 for everything that went wrong, with one line on standard error that says what.
    """
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # or NumPy reserves memory for a thread per CPU
    background.fill_standard_descriptors()
    try:
        options = parse_options(sys.argv[1:] if argv is None else argv, _working_directory())
    except UsageError as error:
        write_to_stderr(one_line(f"{PROGRAM}: {error}") + "\n")
        return 1
    if isinstance(options, Show):
        return _print(help_text(OPTIONS) if options is Show.HELP else version_text(__version__))
    if options.foreground:
        return _run(options, None, run)
    side = background.fork(options.attachment.fd)
    return side if isinstance(side, int) else _run(options, side, run)


def discover() -> Host:
    """Look at the host."""
    from trio_passt.host import discovery

    return discovery.discover()


def _watch() -> "HostWatch":
    from trio_passt.host.discovery import RESOLV_CONF
    from trio_passt.host.watch import HostWatch

    return HostWatch(RESOLV_CONF)


def _run(options: Options, child: background.Child | None, run: Run | None) -> int:
    log_to_stderr(options.log_level)
    try:
        with _watch() as watch:
            configured = configure(options, discover())
            _log_circumstances(configured)
            _run_daemon(configured.config, child, run, watch)
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        if startup_errors := _startup_errors(error):
            for startup_error in startup_errors:
                _log.error("%s", startup_error)
        else:
            _log.critical("ended by a mistake in the program itself: %r", error, exc_info=error)
        return 1
    return 0


def _run_daemon(config: Config, child: background.Child | None, run: Run | None, watch: "HostWatch") -> None:
    import trio

    run = run or _real_daemon()
    with ExitStack() as at_the_end:

        def on_ready(socket_path: Path | None, forwards: Sequence[PortForward]) -> None:
            if config.pid_file is not None:
                at_the_end.callback(PidFile(config.pid_file).remove)
            if config.log_level is not LogLevel.QUIET:
                bound = evolve(config, forwards=tuple(forwards))
                write_to_stderr(startup_message(bound, socket_path, os.uname().machine))
            if child is not None:
                log_to_syslog()
                child.detach(keep_fd=config.attachment.fd)
                child.report_ready()

        trio.run(functools.partial(run, config, on_ready=on_ready, watch=watch))


def _real_daemon() -> Run:
    from trio_passt import daemon

    return daemon.run


def _log_circumstances(configured: Configured) -> None:
    if _is_real_root():
        _log.warning("running as root, where an ordinary user would do")
    for warning in configured.warnings:
        _log.warning("%s", warning)
    for note in configured.notes:
        _log.info("%s", note)
    _log.debug("%r", configured.config)


def _startup_errors(error: BaseException) -> list[StartupError]:
    """The errors meant for the user, if there is nothing else in it; nurseries wrap them in groups."""
    if isinstance(error, StartupError):
        return [error]
    if isinstance(error, BaseExceptionGroup):
        found = [_startup_errors(inner) for inner in error.exceptions]
        return [startup_error for part in found for startup_error in part] if all(found) else []
    return []


def _working_directory() -> Path:
    """Where relative paths start; / if the directory has been deleted (they would lead nowhere)."""
    try:
        return Path.cwd()
    except FileNotFoundError:
        return Path("/")


def _is_real_root() -> bool:
    """Root of a user namespace of one's own is an ordinary user."""
    if os.geteuid() != 0:
        return False
    with suppress(OSError):
        return Path("/proc/self/uid_map").read_text().split() == ["0", "0", "4294967295"]
    return True


def _print(text: str) -> int:
    """To standard output, past Python's buffer, whose last flush would decide about the exit status."""
    data = text.encode()
    try:
        while data:
            data = data[os.write(1, data) :]
    except BrokenPipeError:
        return 1
    except OSError as error:
        write_to_stderr(f"{PROGRAM}: can't write to standard output: {error.strerror}\n")
        return 1
    return 0
