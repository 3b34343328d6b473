"""A libvirt that can run passt, unpacked, not installed.

Debian 12's own was built without: it refuses `<backend type='passt'/>`. The one among that release's backports takes
it. What of it the machine has not installed is unpacked into a directory, to be mounted over /usr by who uses it.

`python3 -m tests.guest.libvirt` builds it, and prints its path.
"""

from __future__ import annotations

from pathlib import Path

from tests.guest import unpacked

PACKAGES = ("libvirt-clients", "libvirt-common", "libvirt-daemon", "libvirt-daemon-driver-qemu", "libvirt0")
# What it is linked with, and QEMU is not; of the machine's own release.
LIBRARIES = (
    *("libapparmor1", "libaudit1", "libbsd0", "libcap-ng0", "libcurl3-gnutls", "libjson-c5", "libnl-3-200"),
    *("libreadline8", "libssh-4", "libtirpc3", "libxml2"),
)


def build(cache: Path | None = None) -> Path:
    """What belongs into /usr, from the cache if it was unpacked before. Raises `packages.PackageError`."""
    suite = f"{unpacked.own_release()}-backports"
    return unpacked.build("libvirt", PACKAGES, suite=suite, libraries=LIBRARIES, cache=cache)


if __name__ == "__main__":
    print(build())
