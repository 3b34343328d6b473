"""A tap interface of the network namespace that this process is in: Linux's Documentation/networking/tuntap.rst."""

import errno
import fcntl
import os
import stat
import struct

from trio_passt.errors import StartupError

DEVICE = "/dev/net/tun"

TUNSETIFF, TUNGETIFF = 0x400454CA, 0x800454D2
IFF_TAP, IFF_NO_PI, IFF_VNET_HDR = 0x0002, 0x1000, 0x4000

_DEVICE_NUMBER = os.makedev(10, 200)
"""Linux's Documentation/admin-guide/devices.txt."""

_IFREQ = struct.Struct("16sH22x")
"""`struct ifreq` of netdevice(7): the name, and the flags out of a union of 24 bytes."""

_NO_DEVICE = {
    errno.ENOENT: "there is no such file",
    errno.ENODEV: "the kernel has no tap devices",
    errno.ENXIO: "the kernel has no tap devices",
}
"""Errors of open(2) where the module is not loaded, or a container has no such device."""


def open_tap(name: str) -> int:
    """Make the interface `name`, and return the descriptor that it lasts as long as: non-blocking, closed on exec.

    Frames have a virtio-net header before them (IFF_VNET_HDR) where the kernel can do that; TUNGETIFF tells.  Raises
    `StartupError`.
    """
    descriptor = _open_device()
    try:
        try:
            _set_interface(descriptor, name, IFF_TAP | IFF_NO_PI | IFF_VNET_HDR)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            _set_interface(descriptor, name, IFF_TAP | IFF_NO_PI)  # a kernel before 2.6.26, or the name is taken
    except OSError as error:
        os.close(descriptor)
        raise StartupError(f"can't make the interface '{name}' in the namespace: {_reason(error)}") from error
    return descriptor


def is_tap(descriptor: int) -> bool:
    """Whether it is one of `open_tap`, as far as it matters who reads and writes it."""
    status = os.fstat(descriptor)
    if not stat.S_ISCHR(status.st_mode) or status.st_rdev != _DEVICE_NUMBER:
        return False
    try:
        answer = fcntl.ioctl(descriptor, TUNGETIFF, bytes(_IFREQ.size))
    except OSError:
        return False  # it has no interface
    flags: int = _IFREQ.unpack(answer)[1]
    return flags & (IFF_TAP | IFF_NO_PI) == IFF_TAP | IFF_NO_PI


def _open_device() -> int:
    try:
        return os.open(DEVICE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM):
            text = f"can't open {DEVICE}: {error.strerror} (it is for every user where its mode is 0666)"
        elif error.errno in _NO_DEVICE:
            text = f"can't open {DEVICE}: {_NO_DEVICE[error.errno]} (modprobe tun; a container needs the device, too)"
        else:
            text = f"can't open {DEVICE}: {error.strerror}"
        raise StartupError(text) from error


def _set_interface(descriptor: int, name: str, flags: int) -> None:
    fcntl.ioctl(descriptor, TUNSETIFF, _IFREQ.pack(os.fsencode(name), flags))


def _reason(error: OSError) -> str:
    """EINVAL is what the kernel says of a name that another kind of interface has, EBUSY of another process's tap."""
    if error.errno in (errno.EINVAL, errno.EBUSY, errno.EEXIST):
        return "that name is taken, or none for an interface (-I, --ns-ifname sets another)"
    if error.errno == errno.EPERM:
        return "this user may not change that network namespace (it lacks CAP_NET_ADMIN there)"
    return os.strerror(error.errno or 0)
