"""Logging: to standard error, and to the system's log once that is gone; or to a file.

Whatever the destination does (a full disk, a closed pipe, one that nobody reads, no syslog) is no reason for
the daemon to fail or to wait: a record that can't be written now is lost.
"""

import logging
import os
import re
import select
import socket
import time
from contextlib import suppress
from enum import Enum

from trio_passt.cli.mode import PROGRAM
from trio_passt.config import LogLevel

LOGGER = "trio_passt"
SYSLOG_SOCKET = "/dev/log"
STDERR = 2
_LEVELS = {
    LogLevel.QUIET: logging.WARNING,
    LogLevel.INFO: logging.INFO,
    LogLevel.DEBUG: logging.DEBUG,
    LogLevel.TRACE: logging.DEBUG,
}
_SYSLOG_DAEMON = 3 << 3
"""LOG_DAEMON of syslog(3)."""

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


class Prefix(Enum):
    """What stands before a message.

    Nothing; the program's name; seconds since the start, and the module; local time, process ID, level, and the module.
    """

    NONE = "none"
    PROGRAM = "program"
    TIME = "time"
    DATE = "date"


class OneLine(logging.Formatter):
    """The message on one line; a traceback (a bug of ours) follows on lines of its own."""

    def __init__(self, prefix: Prefix) -> None:
        super().__init__()
        self._style_of_prefix = prefix

    def format(self, record: logging.LogRecord) -> str:
        """The text without a final newline."""
        text = self._prefix(record) + one_line(record.getMessage())
        if record.exc_info:
            text += "\n" + self.formatException(record.exc_info)
        return text

    def _prefix(self, record: logging.LogRecord) -> str:
        match self._style_of_prefix:
            case Prefix.NONE:
                return ""
            case Prefix.PROGRAM:
                return f"{PROGRAM}: "
            case Prefix.TIME:
                return f"{record.relativeCreated / 1000:9.4f} {_module(record)}: "
            case Prefix.DATE:
                stamp = time.strftime("%F %T", time.localtime(record.created))
                level = record.levelname.lower()
                return f"{stamp}.{int(record.msecs):03} [{os.getpid()}] {level}: {_module(record)}: "


class StandardError(logging.Handler):
    """Lines to what is standard error at that time."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record, or lose it."""
        write_to_stderr(self.format(record) + "\n", timeout_s=0)


class Syslog(logging.Handler):
    """Datagrams to /dev/log (RFC 3164's local form), without ever waiting for its reader."""

    def __init__(self, path: str) -> None:
        """Raises OSError if there is no descriptor to be had: make it while there are some."""
        super().__init__()
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)

    def emit(self, record: logging.LogRecord) -> None:
        """Send the record, or lose it; the address is looked up each time, for syslog may be restarted."""
        priority = _SYSLOG_DAEMON | _syslog_severity(record.levelno)
        stamp = time.strftime("%b %e %H:%M:%S", time.localtime(record.created))
        text = f"<{priority}>{stamp} {PROGRAM}[{os.getpid()}]: {self.format(record)}"
        with suppress(OSError):
            self._socket.sendto(text.encode("utf-8", "backslashreplace"), self._path)

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()
        super().close()


def log_to_stderr(level: LogLevel) -> None:
    """Everything of `level` and above to standard error; `--debug` shows time and module."""
    prefix = Prefix.TIME if level in (LogLevel.DEBUG, LogLevel.TRACE) else Prefix.PROGRAM
    _use(_formatted(StandardError(), prefix))
    logging.getLogger(LOGGER).setLevel(_LEVELS[level])


def log_to_syslog(syslog: Syslog) -> None:
    """From now on to the system's log, and no longer to standard error."""
    _use(_formatted(syslog, Prefix.NONE))


def log_to_file(file: logging.Handler, *, errors_to_stderr: bool) -> None:
    """From now on to a file; as long as somebody waits for the start, its errors to standard error, too."""
    handlers = [_formatted(file, Prefix.DATE)]
    if errors_to_stderr:
        handlers.append(_formatted(StandardError(logging.ERROR), Prefix.PROGRAM))
    _use(*handlers)


def write_to_stderr(text: str, timeout_s: float = 1.0) -> None:
    """Write as far as that works: standard error may be closed, full, or a pipe that nobody reads.

    Not through `sys.stderr`: what its buffer can't get rid of would be the exit status (120).
    """
    data = text.encode("utf-8", "backslashreplace")
    poll = select.poll()
    poll.register(STDERR, select.POLLOUT)
    with suppress(OSError):
        while data and poll.poll(timeout_s * 1000):
            data = data[os.write(STDERR, data[: select.PIPE_BUF]) :]


def one_line(text: str) -> str:
    """`text` with its control characters escaped: some of it comes from the guest, or from argv."""
    return _CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", text)


def _use(*handlers: logging.Handler) -> None:
    logger = logging.getLogger(LOGGER)
    for old in [handler for handler in logger.handlers if handler not in handlers]:
        old.close()
    logger.handlers[:] = handlers
    logger.propagate = False


def _formatted(handler: logging.Handler, prefix: Prefix) -> logging.Handler:
    handler.setFormatter(OneLine(prefix))
    return handler


def _module(record: logging.LogRecord) -> str:
    return record.name.removeprefix(LOGGER + ".")


def _syslog_severity(level: int) -> int:
    if level >= logging.ERROR:
        return 3
    if level >= logging.WARNING:
        return 4
    return 6 if level >= logging.INFO else 7
