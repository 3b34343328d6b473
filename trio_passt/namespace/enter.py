"""Which network namespace is the guest's, and how a process gets into it: namespaces(7), ioctl_ns(2), setns(2).

Theory of operation
-------------------
A namespace is held by a descriptor of its file, which is opened once: whatever the name or the process ID comes to mean
later, it stays the one that was meant.

Who makes an interface in a network namespace needs CAP_NET_ADMIN in the user namespace that owns it.  An ordinary user
has that in user namespaces of their own, once they have joined them; so that one is joined first.  Where it is the one
that we are in already, there is nothing to join.
"""

import errno
import fcntl
import os
import stat
from pathlib import Path

from attrs import frozen

from trio_passt.config import Namespace
from trio_passt.errors import StartupError
from trio_passt.host.libc import call

CLONE_NEWNS = 0x00020000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

_NS_GET_USERNS, _NS_GET_NSTYPE = 0xB701, 0xB703

NAMED = Path("/run/netns")
"""Where ip-netns(8) has them; /var/run is a link to /run."""

_KINDS = {CLONE_NEWNET: "network namespace", CLONE_NEWUSER: "user namespace"}


@frozen
class Namespaces:
    """Descriptors of the network namespace, and of the user namespace that has to be joined for it, if one has."""

    net: int
    user: int | None

    @property
    def descriptors(self) -> list[int]:
        """As many as there are, that of the network namespace first."""
        return [self.net] if self.user is None else [self.net, self.user]

    def join(self) -> None:
        """Go there with this process, which has one thread; there is no way back.  Raises `StartupError`."""
        if self.user is not None:
            try:
                call("setns", self.user, CLONE_NEWUSER)
            except OSError as error:
                raise StartupError(
                    f"can't join the user namespace: {_why_not(error)}: it is another user's, or not below ours"
                ) from error
        try:
            call("setns", self.net, CLONE_NEWNET)
        except OSError as error:
            raise StartupError(
                f"can't join the network namespace: {_why_not(error)}: that takes CAP_SYS_ADMIN in the user namespace "
                "that owns it"
            ) from error

    def close(self) -> None:
        """Close the descriptors."""
        os.close(self.net)
        if self.user is not None:
            os.close(self.user)


def find(wanted: Namespace) -> Namespaces:
    """The namespaces that are meant, by process ID or path.  Raises `StartupError`."""
    net = _open_net(wanted)
    try:
        if _is_own(net, "net"):
            raise StartupError(f"{_name(wanted)} has the network namespace that this program runs in itself")
        return Namespaces(net, _user(wanted, net))
    except BaseException:
        os.close(net)
        raise


def of_this_process(*, user: bool) -> Namespaces:
    """Those that this process is in.  Raises OSError."""
    return Namespaces(_open("/proc/self/ns/net"), _open("/proc/self/ns/user") if user else None)


def _open_net(wanted: Namespace) -> int:
    if wanted.pid is not None:
        return _open_of_process(wanted.pid, "net")
    assert wanted.path is not None
    return _open_file(wanted.path, CLONE_NEWNET)


def _user(wanted: Namespace, net: int) -> int | None:
    """The user namespace to join."""
    if wanted.user_path is not None:
        user = _open_file(wanted.user_path, CLONE_NEWUSER)
    elif not wanted.joins_user:
        return None
    else:
        try:
            user = fcntl.ioctl(net, _NS_GET_USERNS)
        except OSError as error:
            if error.errno == errno.EPERM or wanted.pid is None:
                return None  # it is above ours, where nothing can be joined
            user = _open_of_process(wanted.pid, "user")  # a kernel before 4.9
    if _is_own(user, "user"):
        os.close(user)
        return None
    return user


def _open_of_process(pid: int, kind: str) -> int:
    try:
        return _open(f"/proc/{pid}/ns/{kind}")
    except (FileNotFoundError, ProcessLookupError) as error:
        raise StartupError(f"there is no process {pid} (or no /proc to find it in)") from error
    except PermissionError as error:
        raise StartupError(
            f"can't open the namespaces of process {pid}: {error.strerror}: it is another user's"
        ) from error
    except OSError as error:
        raise StartupError(f"can't open the namespaces of process {pid}: {error.strerror}") from error


def _open_file(path: Path, kind: int) -> int:
    try:
        descriptor = _open(path)
    except OSError as error:
        hint = ""
        if isinstance(error, FileNotFoundError) and path.parent == NAMED:
            hint = " (ip netns list shows those that have a name)"
        raise StartupError(f"can't open the {_KINDS[kind]} {path}: {error.strerror}{hint}") from error
    try:
        _check_kind(descriptor, path, kind)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def kind_of(descriptor: int) -> int:
    """The CLONE_NEW... of the namespace whose file this is.  Raises OSError if it is none."""
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        raise OSError(errno.ENOTTY, os.strerror(errno.ENOTTY))
    return fcntl.ioctl(descriptor, _NS_GET_NSTYPE)


def _check_kind(descriptor: int, path: Path, kind: int) -> None:
    try:
        found = kind_of(descriptor)
    except OSError as error:
        raise StartupError(f"{path} is no {_KINDS[kind]}, but an ordinary file or directory") from error
    if found != kind:
        raise StartupError(f"{path} is no {_KINDS[kind]}, but another kind of namespace")


def _open(path: str | Path) -> int:
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)


def _is_own(descriptor: int, kind: str) -> bool:
    there, own = os.fstat(descriptor), os.stat(f"/proc/self/ns/{kind}")
    return (there.st_dev, there.st_ino) == (own.st_dev, own.st_ino)


def _name(wanted: Namespace) -> str:
    return f"process {wanted.pid}" if wanted.pid is not None else str(wanted.path)


def _why_not(error: OSError) -> str:
    return os.strerror(error.errno or 0)
