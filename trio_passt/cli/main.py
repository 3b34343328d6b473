"""The program: argv → exit status.

The order matters.  What can be wrong in argv is found before anything else; the fork comes before Trio; the
configuration is complete before the daemon runs; all that takes privileges is open before they are given up; and
what says "ready" to the outside (message, service manager, the parent's exit) comes when the daemon says so.  Heavy
modules are imported where they are first needed, so that `--help` is quick.
"""

import errno
import functools
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from attrs import evolve, frozen

from trio_passt import __version__
from trio_passt.cli import background, privileges, service_manager
from trio_passt.cli.configure import Configured, configure
from trio_passt.cli.log import (
    SYSLOG_SOCKET,
    Syslog,
    log_to_file,
    log_to_stderr,
    log_to_syslog,
    one_line,
    write_to_stderr,
)
from trio_passt.cli.log_file import LogFile
from trio_passt.cli.messages import help_text, startup_message, version_text
from trio_passt.cli.mode import MODE, PROGRAM, Mode
from trio_passt.cli.options import Options, Show, parse_options
from trio_passt.cli.pid_file import PidFile
from trio_passt.cli.values import UsageError
from trio_passt.config import Config, LogLevel, PortForward, RunAs
from trio_passt.errors import StartupError
from trio_passt.host.ephemeral import ephemeral_ports
from trio_passt.host.network import Host

if TYPE_CHECKING:
    from trio_passt.host.watch import HostWatch
    from trio_passt.namespace.opened import OpenedNamespace

_LIMITS = {errno.EMFILE, errno.ENFILE, errno.ENOMEM}
"""Errors that no start survives, wherever they come up."""

_log = logging.getLogger(__name__)


class Run(Protocol):
    """`trio_passt.daemon.run`: returns the exit status at the daemon's orderly end.

    It calls `on_open` once everything is open that privileges may be needed for, then `on_ready`.
    """

    async def __call__(
        self,
        config: Config,
        *,
        on_open: Callable[[], None],
        on_ready: Callable[[Path | None, Sequence[PortForward]], None],
        watch: "HostWatch",
        namespace: "OpenedNamespace | None",
    ) -> int: ...


@frozen
class _Surroundings:
    """Who waits for the daemon, and where its log goes, then and later."""

    child: background.Child | None
    notifier: service_manager.Notifier
    log_file: LogFile | None
    syslog: Syslog | None


def main(argv: Sequence[str] | None = None, *, run: Run | None = None, mode: Mode = MODE) -> int:
    """The whole program; `argv` is without its name, `run` is the daemon (the real one by default).

    Returns the exit status: 0 for a daemon that was ready and ended in order (or that is ready, in the
    background), or a command's that was run in a namespace; 1 for everything that went wrong, with one line on standard
    error that says what.
    """
    try:
        umask = prepare()
        options = parse_options(sys.argv[1:] if argv is None else argv, working_directory(), ephemeral_ports(), mode)
        if isinstance(options, Show):
            return print_text(help_text(mode) if options is Show.HELP else version_text(__version__, mode))
        options = _attached(options)
    except (UsageError, StartupError) as error:
        write_to_stderr(one_line(f"{PROGRAM}: {error}") + "\n")
        return 1
    notifier = service_manager.Notifier(os.environ)
    if options.foreground:
        return run_options(options, None, notifier, run, umask)
    side = background.fork(_inherited_fd(options))
    return side if isinstance(side, int) else run_options(options, side, notifier, run, umask)


def prepare() -> int:
    """What comes before anything else, in any program; returns the mask of the caller's new files (umask(2)).

    Raises `StartupError`.
    """
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # asks for the status, and would kill us until the daemon listens
    try:
        background.fill_standard_descriptors()
    except OSError as error:
        raise StartupError(f"can't open {os.devnull}: {error.strerror}") from error
    return background.reset_inherited()


def discover() -> Host:
    """Look at the host."""
    from trio_passt.host import discovery

    return discovery.discover()


def _attached(options: Options) -> Options:
    """`options` with what was passed by a service manager.

    That a descriptor is not there is found out here, before its number is another's.
    """
    fd = service_manager.inherited(os.environ)
    if fd is not None:
        return service_manager.attached(options, fd)
    if options.attachment.fd is not None:
        try:
            os.fstat(options.attachment.fd)
        except OSError as error:
            fd = options.attachment.fd
            raise UsageError(f"option '--fd {fd}': {error.strerror}: a connected socket is expected") from error
    return options


def _inherited_fd(options: Options) -> int | None:
    attachment = options.attachment
    return attachment.listen_fd if attachment.fd is None else attachment.fd


def _watch() -> "HostWatch":
    from trio_passt.host.discovery import RESOLV_CONF
    from trio_passt.host.watch import HostWatch

    return HostWatch(RESOLV_CONF)


def run_options(
    options: Options, child: background.Child | None, notifier: service_manager.Notifier, run: Run | None, umask: int
) -> int:
    """All that follows the command line and the fork, to the end; returns the exit status."""
    log_to_stderr(options.log_level)
    try:
        log_file = _open_log(options)
        syslog = Syslog(SYSLOG_SOCKET) if child is not None and log_file is None else None
        user = privileges.next_user(options.run_as)
        with ExitStack() as opened:
            watch = opened.enter_context(_watch())
            configured = configure(options, discover() if user is None else privileges.discover_as(user))
            config = evolve(configured.config, run_as=user)
            _log_circumstances(config, configured)
            namespace = _open_namespace(config, umask, user if options.run_as is not None else None)
            if namespace is not None:
                opened.callback(namespace.close)
            return _run_daemon(config, _Surroundings(child, notifier, log_file, syslog), run, watch, namespace)
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        if startup_errors := _startup_errors(error):
            for startup_error in startup_errors:
                _log.error("%s", startup_error)
        else:
            _log.critical("ended by a mistake in the program itself: %r", error, exc_info=error)
        return 1


def _open_namespace(config: Config, umask: int, command_user: RunAs | None) -> "OpenedNamespace | None":
    """The guest, if it is a namespace; it may have to be made, for a command that has the caller's `umask`.

    A command of root's is run as `command_user`, if that one was asked for.
    """
    if config.namespace is None:
        return None
    from trio_passt.namespace.opened import open_namespace

    return open_namespace(config, umask=umask, command_user=command_user, meanwhile=_import_daemon)


def _open_log(options: Options) -> LogFile | None:
    """The log file, which has the log from now on."""
    if options.log_file is None:
        return None
    log_file = LogFile(options.log_file, options.log_size_bytes)
    log_to_file(log_file, errors_to_stderr=True)
    return log_file


def _run_daemon(
    config: Config,
    surroundings: _Surroundings,
    run: Run | None,
    watch: "HostWatch",
    namespace: "OpenedNamespace | None",
) -> int:
    import trio

    run = run or _real_daemon()
    with ExitStack() as at_the_end:

        def on_open() -> None:
            if config.pid_file is not None:
                at_the_end.callback(PidFile(config.pid_file).remove)
            if config.run_as is not None:
                privileges.become(config.run_as, binds_later=config.binds_later)

        def on_ready(socket_path: Path | None, forwards: Sequence[PortForward]) -> None:
            if config.log_level is not LogLevel.QUIET:
                bound = evolve(config, forwards=tuple(forwards))
                interface = namespace.interface if namespace is not None else None
                _say(startup_message(bound, socket_path, os.uname().machine, interface), surroundings)
            _leave_the_caller(config, surroundings)
            surroundings.notifier.ready(socket_path, os.getpid() if surroundings.child is not None else None)
            at_the_end.callback(surroundings.notifier.stopping)

        return trio.run(
            functools.partial(run, config, on_open=on_open, on_ready=on_ready, watch=watch, namespace=namespace)
        )


def _leave_the_caller(config: Config, surroundings: _Surroundings) -> None:
    """What is to be said goes to its place for the time to come, and who waits for the start waits no longer."""
    child = surroundings.child
    if surroundings.log_file is not None:
        log_to_file(surroundings.log_file, errors_to_stderr=False)
    elif surroundings.syslog is not None:
        log_to_syslog(surroundings.syslog)
    elif config.namespace is not None and config.namespace.is_new and config.log_level is LogLevel.INFO:
        log_to_stderr(LogLevel.QUIET)  # the terminal is the command's
    if child is not None:
        child.detach(keep_fd=config.attachment.fd)
        child.report_ready()


def _say(message: str, surroundings: _Surroundings) -> None:
    write_to_stderr(message)
    if surroundings.log_file is not None:
        for line in message.splitlines():
            _log.info("%s", line)


def _import_daemon() -> None:
    """What takes long, and is for no other process of ours."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # or NumPy reserves memory for a thread per CPU
    from trio_passt import daemon  # noqa: F401


def _real_daemon() -> Run:
    _import_daemon()
    from trio_passt import daemon

    return daemon.run


def _log_circumstances(config: Config, configured: Configured) -> None:
    if config.run_as is not None and config.run_as.uid != 0:
        _log.debug("going on as user %d, group %d when all is open", config.run_as.uid, config.run_as.gid)
    elif privileges.is_real_root():
        _log.warning("running as root, where an ordinary user would do")
    for warning in configured.warnings:
        _log.warning("%s", warning)
    for note in configured.notes:
        _log.info("%s", note)
    for line in str(config).splitlines():
        _log.debug("%s", line)


def _startup_errors(error: BaseException) -> list[StartupError]:
    """The errors meant for the user, if there is nothing else in it; nurseries wrap them in groups."""
    if isinstance(error, StartupError):
        return [error]
    if isinstance(error, OSError) and error.errno in _LIMITS:
        return [StartupError(f"{os.strerror(error.errno)} (see ulimit -n, and the limits of this host)")]
    if isinstance(error, BaseExceptionGroup):
        found = [_startup_errors(inner) for inner in error.exceptions]
        return [startup_error for part in found for startup_error in part] if all(found) else []
    return []


def working_directory() -> Path:
    """Where relative paths start; / if the directory has been deleted (they would lead nowhere)."""
    try:
        return Path.cwd()
    except FileNotFoundError:
        return Path("/")


def print_text(text: str) -> int:
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
