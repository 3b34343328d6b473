"""Which namespaces are meant, and how they are joined: with the kernel's own."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from processes_here import new_namespaces, nothing_left, wait_for

from trio_passt.config import Namespace
from trio_passt.errors import StartupError
from trio_passt.namespace import processes
from trio_passt.namespace.enter import Namespaces, find


@contextmanager
def sleeping(*unshare: str) -> Iterator[int]:
    """A process that has been there for long enough, with the namespaces that it has left."""
    with subprocess.Popen(["unshare", *unshare, "sleep", "1000"] if unshare else ["sleep", "1000"]) as process:
        try:
            wait_for(lambda: Path(f"/proc/{process.pid}/comm").read_text() == "sleep\n")
            yield process.pid
        finally:
            process.kill()


def inode(link: str) -> int:
    return os.stat(link).st_ino


def joined(namespaces: Namespaces) -> int:
    """The status of a child that joins them: 0 if it is where it wanted to be."""

    def join() -> int:
        net = os.fstat(namespaces.net).st_ino
        try:
            namespaces.join()
        except StartupError as error:
            os.write(1, str(error).encode())
            return 1
        return 0 if inode("/proc/self/ns/net") == net else 2

    kept = [one for one in (namespaces.net, namespaces.user) if one is not None]
    return processes.status_of(processes.fork(join, *kept))


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    with nothing_left():
        yield


def test_process() -> None:
    with sleeping("--user", "--net") as pid:
        found = find(Namespace(pid=pid))
        assert os.fstat(found.net).st_ino == inode(f"/proc/{pid}/ns/net")
        assert found.user is not None
        assert os.fstat(found.user).st_ino == inode(f"/proc/{pid}/ns/user")
        assert not os.get_inheritable(found.net)
        assert not os.get_inheritable(found.user)
        assert joined(found) == 0
        found.close()


def test_owner_is_joined_even_if_the_process_is_further_down() -> None:
    """A process may have made a user namespace, but no network, after it had come to its network."""
    with sleeping("--user", "--map-root-user", "--net", "unshare", "--user") as pid:
        found = find(Namespace(pid=pid))
        assert found.user is not None
        assert os.fstat(found.user).st_ino != inode(f"/proc/{pid}/ns/user")
        assert joined(found) == 0
        found.close()


def test_path_whose_owner_is_our_own(tmp_path: Path) -> None:
    with sleeping("--net") as pid:
        found = find(Namespace(path=Path(f"/proc/{pid}/ns/net")))
        assert found.user is None
        assert joined(found) == 0
        found.close()


def test_user_namespace_by_path() -> None:
    with sleeping("--user", "--net") as pid:
        found = find(Namespace(path=Path(f"/proc/{pid}/ns/net"), user_path=Path(f"/proc/{pid}/ns/user")))
        assert found.user is not None
        assert joined(found) == 0
        found.close()


def test_no_user_namespace() -> None:
    with sleeping("--user", "--net") as pid:
        found = find(Namespace(pid=pid, joins_user=False))
        assert found.user is None
        found.close()


def test_user_namespace_that_does_not_help(capfd: pytest.CaptureFixture[str]) -> None:
    """Who has joined another one has no say in this one's any more."""
    with sleeping("--user", "--net") as one, sleeping("--user", "--net") as other:
        found = find(Namespace(path=Path(f"/proc/{one}/ns/net"), user_path=Path(f"/proc/{other}/ns/user")))
        assert joined(found) == 1
        found.close()
    said = "can't join the network namespace: Operation not permitted: that takes CAP_SYS_ADMIN in the user namespace"
    assert capfd.readouterr().out.startswith(said)


def test_new_ones_can_be_joined() -> None:
    with new_namespaces() as namespaces:
        assert joined(namespaces) == 0


def test_own_ones_are_refused() -> None:
    with sleeping() as pid:
        for wanted in (Namespace(pid=pid), Namespace(path=Path("/proc/self/ns/net"))):
            with pytest.raises(StartupError, match="the network namespace that this program runs in itself"):
                find(wanted)


def test_process_that_has_ended() -> None:
    with sleeping("--net") as pid:
        pass
    with pytest.raises(StartupError, match=f"there is no process {pid} "):
        find(Namespace(pid=pid))


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("/run/netns/no-such-name", r"No such file or directory \(ip netns list"),
        ("/dev/null/x", "Not a directory"),
        ("/dev/null", "is no network namespace, but an ordinary file or directory"),
        ("/", "is no network namespace, but an ordinary file or directory"),
        ("/etc/passwd", "is no network namespace, but an ordinary file or directory"),
        ("/proc/self/ns/user", "is no network namespace, but another kind of namespace"),
    ],
)
def test_path_that_is_none(path: str, text: str) -> None:
    with pytest.raises(StartupError, match=text):
        find(Namespace(path=Path(path)))


def test_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(StartupError, match="is no network namespace"):
        find(Namespace(path=tmp_path / "pipe"))


@pytest.mark.parametrize(("kind", "text"), [("net", "is no user namespace"), ("absent", "No such file")])
def test_user_path_that_is_none(kind: str, text: str) -> None:
    with sleeping("--user", "--net") as pid, pytest.raises(StartupError, match=text):
        find(Namespace(pid=pid, user_path=Path(f"/proc/{pid}/ns/{kind}")))
