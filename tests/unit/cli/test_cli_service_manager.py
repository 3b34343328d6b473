"""systemd's two protocols: sockets that it passes, and messages that it gets."""

import configparser
import os
import shlex
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from trio_passt.cli import service_manager
from trio_passt.cli.options import Options, parse_options
from trio_passt.cli.service_manager import Notifier, attached, inherited
from trio_passt.cli.values import UsageError
from trio_passt.config import Attachment

UNITS = Path(__file__).parents[3] / "contrib" / "systemd"


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def variables(count: object, pid: object = None, names: str = "") -> dict[str, str]:
    """An environment with what systemd puts there."""
    pid = os.getpid() if pid is None else pid
    return {"LISTEN_PID": f"{pid}", "LISTEN_FDS": f"{count}", "LISTEN_FDNAMES": names, "HOME": "/"}


def test_one_descriptor_is_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    with open(os.devnull) as file:
        monkeypatch.setattr(service_manager, "FIRST_FD", file.fileno())
        os.set_inheritable(file.fileno(), True)
        environment = variables(1)
        assert inherited(environment) == file.fileno()
        assert environment == {"HOME": "/"}
        assert not os.get_inheritable(file.fileno())


@pytest.mark.parametrize(
    "environment", [{}, variables(1, os.getppid()), variables(1, "x"), variables(1, ""), variables(0)]
)
def test_none_is(environment: dict[str, str]) -> None:
    assert inherited(environment) is None
    assert not environment.keys() & {"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"}


def test_several_are_too_many() -> None:
    with pytest.raises(UsageError, match=r"^the service manager passed 2 sockets \(one:two\), where one is expected$"):
        inherited(variables(2, names="one:two"))
    with pytest.raises(UsageError, match=r"^the service manager passed 999999999 sockets, where one is expected$"):
        inherited(variables(999_999_999))


@pytest.mark.parametrize("count", ["", "x", "-1"])
def test_a_number_that_is_none(count: str) -> None:
    with pytest.raises(UsageError, match=f"^the service manager's LISTEN_FDS is '{count}': a number is expected$"):
        inherited(variables(count))


def listening(stack: ExitStack, family: int, kind: int, address: object) -> int:
    sock = stack.enter_context(socket.socket(family, kind))
    sock.bind(address)  # type: ignore[arg-type]
    if kind != socket.SOCK_DGRAM:
        sock.listen()
    return sock.fileno()


def test_a_socket_that_listens_is_the_door(stack: ExitStack, tmp_path: Path) -> None:
    fd = listening(stack, socket.AF_UNIX, socket.SOCK_STREAM, str(tmp_path / "socket"))
    assert attached(Options(), fd) == Options(attachment=Attachment(listen_fd=fd))


def test_a_connected_one_is_the_guest(stack: ExitStack) -> None:
    ours, theirs = map(stack.enter_context, socket.socketpair())
    assert attached(Options(), ours.fileno()) == Options(attachment=Attachment(fd=ours.fileno()), one_off=True)
    theirs.close()


def pipe(stack: ExitStack) -> int:
    reader, writer = os.pipe()
    stack.callback(os.close, reader)
    os.close(writer)
    return reader


def opened(stack: ExitStack, path: Path | str) -> int:
    fd = os.open(path, os.O_RDONLY)
    stack.callback(os.close, fd)
    return fd


KINDS: dict[str, Callable[[ExitStack, Path], int]] = {
    "a UNIX datagram socket": lambda stack, path: listening(stack, socket.AF_UNIX, socket.SOCK_DGRAM, str(path)),
    "a UNIX sequential-packet socket": lambda stack, path: listening(
        stack, socket.AF_UNIX, socket.SOCK_SEQPACKET, str(path)
    ),
    "an IPv4 stream socket": lambda stack, _: listening(stack, socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", 0)),
    "an IPv4 datagram socket": lambda stack, _: listening(stack, socket.AF_INET, socket.SOCK_DGRAM, ("127.0.0.1", 0)),
    "an IPv6 stream socket": lambda stack, _: listening(stack, socket.AF_INET6, socket.SOCK_STREAM, ("::1", 0)),
    "a FIFO": lambda stack, _: pipe(stack),
    "a directory": lambda stack, path: opened(stack, path.parent),
    "a file": lambda stack, _: opened(stack, __file__),
    "a character device": lambda stack, _: opened(stack, os.devnull),
    "descriptor 9999, which can't be used (Bad file descriptor)": lambda _, __: 9999,
}


@pytest.mark.parametrize("kind", KINDS)
def test_anything_else_is_named(stack: ExitStack, tmp_path: Path, kind: str) -> None:
    fd = KINDS[kind](stack, tmp_path / "socket")
    with pytest.raises(UsageError) as caught:
        attached(Options(), fd)
    assert str(caught.value) == f"the service manager passed {kind}, where a UNIX stream socket is expected"
    if fd != 9999:
        os.fstat(fd)  # it has not been closed


@pytest.mark.parametrize(
    ("attachment", "words"),
    [(Attachment(socket_path=Path("/tmp/guest")), "--socket /tmp/guest"), (Attachment(fd=7), "--fd 7")],
)
def test_options_that_say_something_else(attachment: Attachment, words: str) -> None:
    text = f"option '{words}' and the socket that the service manager passed (LISTEN_FDS) contradict each other"
    with pytest.raises(UsageError) as caught:
        attached(Options(attachment=attachment), 3)
    assert str(caught.value) == text


@pytest.mark.parametrize("kind", ["path", "abstract"])
def test_the_manager_is_told(tmp_path: Path, kind: str) -> None:
    name = str(tmp_path / "notify") if kind == "path" else f"@trio-passt-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(name.replace("@", "\0", 1))
        manager.settimeout(30)
        environment = {"NOTIFY_SOCKET": name, "HOME": "/"}
        notifier = Notifier(environment)
        assert environment == {"HOME": "/"}
        notifier.ready(Path("/tmp/a\nb"))
        notifier.ready(None, 4321)
        notifier.stopping()
        assert [manager.recv(1000).decode().split("\n") for _ in range(3)] == [
            ["READY=1", "STATUS=waiting for a guest at /tmp/a b"],
            ["READY=1", "STATUS=serving the guest", "MAINPID=4321"],
            ["STOPPING=1", "STATUS=ending"],
        ]


@pytest.mark.parametrize("name", ["", "/nowhere/notify", "@", "@nobody", "vsock:2:1", "relative", "/" + "x" * 200])
def test_nobody_to_tell(name: str) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": name} if name else {})
    notifier.ready(Path("/tmp/socket"), 1)
    notifier.stopping()


def test_a_manager_that_does_not_listen_is_not_waited_for(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        notifier = Notifier({"NOTIFY_SOCKET": str(tmp_path / "notify")})
        for _ in range(2000):
            notifier.stopping()


def test_the_units_that_we_recommend() -> None:
    """What they start is a command line of ours, and is what their type says: `systemd-analyze verify` can't know."""
    units = {path.suffix: configparser.ConfigParser(interpolation=None) for path in UNITS.iterdir()}
    for path in UNITS.iterdir():
        units[path.suffix].read_string(path.read_text())
        assert path.stem == "trio-passt"  # what a socket starts has its name
    service = units[".service"]["Service"]
    program, *words = shlex.split(service["ExecStart"])
    options = parse_options(words, Path("/"))
    assert isinstance(options, Options)
    assert (program, service["Type"], options.foreground) == ("%h/trio-passt/bin/trio-passt", "notify", True)
    assert options.attachment == Attachment()
    assert units[".socket"]["Socket"]["ListenStream"].startswith("%t/")
