"""Lines of the log: one a record, and never a reason to fail or to wait."""

import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from trio_passt.cli import log
from trio_passt.cli.log_file import LogFile
from trio_passt.config import LogLevel


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    """The package's logger, as it was before afterwards."""
    logger = logging.getLogger(log.LOGGER)
    handlers, level, propagate = list(logger.handlers), logger.level, logger.propagate
    yield logger
    for handler in logger.handlers:
        handler.close()
    logger.handlers[:], logger.propagate = handlers, propagate
    logger.setLevel(level)


@pytest.mark.parametrize(
    ("level", "expected"),
    [
        (LogLevel.QUIET, ["trio-passt: three", "trio-passt: four"]),
        (LogLevel.INFO, ["trio-passt: two", "trio-passt: three", "trio-passt: four"]),
    ],
)
def test_levels(
    logger: logging.Logger, capfd: pytest.CaptureFixture[str], level: LogLevel, expected: list[str]
) -> None:
    log.log_to_stderr(level)
    logger.debug("one")
    logger.info("two")
    logger.warning("three")
    logger.getChild("tcp").error("four")
    assert capfd.readouterr().err.splitlines() == expected


@pytest.mark.parametrize("level", [LogLevel.DEBUG, LogLevel.TRACE])
def test_debug_shows_time_and_module(
    logger: logging.Logger, capfd: pytest.CaptureFixture[str], level: LogLevel
) -> None:
    log.log_to_stderr(level)
    logger.getChild("tcp.flow").debug("%s opens", "flow 1")
    seconds, text = capfd.readouterr().err.split(maxsplit=1)
    assert float(seconds) >= 0
    assert text == "tcp.flow: flow 1 opens\n"


def test_what_a_guest_says_stays_on_one_line(logger: logging.Logger, capfd: pytest.CaptureFixture[str]) -> None:
    log.log_to_stderr(LogLevel.INFO)
    logger.info("host name %s", "a\nb\x1b[31m\x7f\x9b\tü")
    assert capfd.readouterr().err == "trio-passt: host name a\\x0ab\\x1b[31m\\x7f\\x9b\\x09ü\n"


def test_a_traceback_follows(logger: logging.Logger, capfd: pytest.CaptureFixture[str]) -> None:
    log.log_to_stderr(LogLevel.INFO)
    try:
        raise ValueError("inside")
    except ValueError:
        logger.exception("a flow failed")
    lines = capfd.readouterr().err.splitlines()
    assert lines[0] == "trio-passt: a flow failed"
    assert lines[-1] == "ValueError: inside"


def test_setting_up_twice_logs_once(logger: logging.Logger, capfd: pytest.CaptureFixture[str]) -> None:
    log.log_to_stderr(LogLevel.INFO)
    log.log_to_stderr(LogLevel.INFO)
    logger.info("once")
    assert capfd.readouterr().err.count("once") == 1


def _as_stderr(monkeypatch: pytest.MonkeyPatch, fd: int) -> None:
    monkeypatch.setattr(log, "STDERR", fd)


def test_a_full_device_is_survived(monkeypatch: pytest.MonkeyPatch) -> None:
    with open("/dev/full", "wb", buffering=0) as full:
        _as_stderr(monkeypatch, full.fileno())
        log.write_to_stderr("lost\n")


def test_a_closed_pipe_is_survived(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    _as_stderr(monkeypatch, writer)
    log.write_to_stderr("lost\n")
    os.close(writer)


def test_a_closed_descriptor_is_survived(monkeypatch: pytest.MonkeyPatch) -> None:
    fd = os.open(os.devnull, os.O_WRONLY)
    os.close(fd)
    _as_stderr(monkeypatch, fd)
    log.write_to_stderr("lost\n")


def test_a_pipe_that_nobody_reads_does_not_block(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    _as_stderr(monkeypatch, writer)
    for _ in range(1000):
        log.write_to_stderr("x" * 1000, timeout_s=0)
    assert len(os.read(reader, 1 << 20)) > 4096
    os.close(reader)
    os.close(writer)


def test_long_text_arrives_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    _as_stderr(monkeypatch, writer)
    log.write_to_stderr("x" * 20000)
    os.close(writer)
    with open(reader, "rb") as pipe:
        assert pipe.read() == b"x" * 20000


@pytest.mark.parametrize(
    ("level", "priority"),
    [(logging.DEBUG, 31), (logging.INFO, 30), (logging.WARNING, 28), (logging.ERROR, 27), (logging.CRITICAL, 27)],
)
def test_syslog(logger: logging.Logger, tmp_path: Path, level: int, priority: int) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as syslog:
        syslog.bind(str(tmp_path / "log"))
        handler = log.Syslog(str(tmp_path / "log"))
        handler.setFormatter(log.OneLine(log.Prefix.NONE))
        handler.emit(logging.LogRecord(log.LOGGER, level, __file__, 1, "guest\nconnected", (), None))
        handler.close()
        text = syslog.recv(1000).decode()
    assert text.startswith(f"<{priority}>")
    assert text.endswith(f" trio-passt[{os.getpid()}]: guest\\x0aconnected")


def test_no_syslog_is_survived(logger: logging.Logger) -> None:
    log.log_to_syslog(log.Syslog("/nowhere/log"))
    logger.error("lost")


def test_a_syslog_that_nobody_reads_does_not_block(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as syslog:
        syslog.bind(str(tmp_path / "log"))
        handler = log.Syslog(str(tmp_path / "log"))
        handler.setFormatter(log.OneLine(log.Prefix.NONE))
        for _ in range(2000):
            handler.emit(logging.LogRecord(log.LOGGER, logging.INFO, __file__, 1, "again", (), None))
        handler.close()


def test_a_log_file_has_everything_and_standard_error_the_errors_of_the_start(
    logger: logging.Logger, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    log.log_to_stderr(LogLevel.INFO)
    file = LogFile(tmp_path / "log", 4096)
    log.log_to_file(file, errors_to_stderr=True)
    logger.warning("one")
    logger.error("two")
    log.log_to_file(file, errors_to_stderr=False)
    logger.error("three")
    assert capfd.readouterr().err == "trio-passt: two\n"
    lines = [line.split("] ")[1] for line in (tmp_path / "log").read_text().splitlines()]
    assert lines == ["warning: trio_passt: one", "error: trio_passt: two", "error: trio_passt: three"]
