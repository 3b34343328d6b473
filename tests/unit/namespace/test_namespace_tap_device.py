"""Errors about the tap: what a user reads on machines that have no such device, or do not let them."""

import errno
import os

import pytest

from trio_passt.errors import StartupError
from trio_passt.namespace import tap_device
from trio_passt.namespace.tap_device import IFF_NO_PI, IFF_TAP, IFF_VNET_HDR, open_tap


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (errno.ENOENT, r"can't open /dev/net/tun: there is no such file \(modprobe tun; a container needs"),
        (errno.ENODEV, r"can't open /dev/net/tun: the kernel has no tap devices \(modprobe tun; a container needs"),
        (errno.EACCES, r"can't open /dev/net/tun: Permission denied \(it is for every user where its mode is 0666\)"),
        (errno.EMFILE, r"can't open /dev/net/tun: Too many open files$"),
    ],
)
def test_device_that_can_not_be_opened(number: int, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(StartupError, match=text):
        open_tap("tap0")


class PlayedIoctl:
    """The flags that TUNSETIFF is asked for; it refuses as long as there are errors to say."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *errors: int) -> None:
        self._errors = list(errors)
        self.flags: list[int] = []
        monkeypatch.setattr(tap_device, "DEVICE", os.devnull)
        monkeypatch.setattr(tap_device.fcntl, "ioctl", self._ioctl)

    def _ioctl(self, _descriptor: int, request: int, argument: bytes) -> None:
        assert request == tap_device.TUNSETIFF
        assert argument[:16] == b"tap0".ljust(16, b"\0")
        assert len(argument) == 40
        self.flags.append(int.from_bytes(argument[16:18], "little"))
        if self._errors:
            raise OSError(self._errors.pop(0), "")


def test_header_for_offloads_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    played = PlayedIoctl(monkeypatch)
    os.close(open_tap("tap0"))
    assert played.flags == [IFF_TAP | IFF_NO_PI | IFF_VNET_HDR]


def test_kernel_without_that_header(monkeypatch: pytest.MonkeyPatch) -> None:
    played = PlayedIoctl(monkeypatch, errno.EINVAL)
    os.close(open_tap("tap0"))
    assert played.flags[1] == IFF_TAP | IFF_NO_PI


@pytest.mark.parametrize(
    ("errors", "text"),
    [
        ([errno.EINVAL, errno.EINVAL], "that name is taken"),
        ([errno.EBUSY], "that name is taken"),
        ([errno.EPERM], "this user may not change that network namespace"),
        ([errno.ENOMEM], "Cannot allocate memory"),
    ],
)
def test_interface_that_can_not_be_made(errors: list[int], text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    PlayedIoctl(monkeypatch, *errors)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(StartupError, match=f"can't make the interface 'tap0' in the namespace: {text}"):
        open_tap("tap0")
    assert len(os.listdir("/proc/self/fd")) == before
