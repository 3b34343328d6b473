"""Programs that run containers, unpacked, not installed: to be mounted over /usr by who uses them.

Of the machine's own release (Debian 12): a Podman and a RootlessKit that start slirp4netns and do not know pasta yet.
Of the next one: those that start pasta. They come with the C library and others that they are linked with there, which
the older programs of the machine run with, too.

`python3 -m tests.guest.containers` builds both, and prints their paths.
"""

from __future__ import annotations

from pathlib import Path

from tests.guest import unpacked

PROGRAMS = ("conmon", "crun", "golang-github-containers-common", "podman", "rootlesskit")
OF_THIS_RELEASE = ("golang-github-containers-image", "uidmap")
NEXT_RELEASE = "trixie"
LIBRARIES_THERE = (
    *("libassuan9", "libc6", "libcap2", "libgcrypt20", "libglib2.0-0t64", "libgpg-error0", "libgpgme11t64"),
    *("libpcre2-8-0", "libseccomp2", "libselinux1", "libsqlite3-0", "libsubid5", "libsystemd0", "libyajl2"),
    "netavark",
)


def of_this_release(cache: Path | None = None) -> Path:
    """What belongs into /usr, from the cache if it was unpacked before. Raises `packages.PackageError`."""
    return unpacked.build("containers", (*PROGRAMS, *OF_THIS_RELEASE), suite="", cache=cache)


def of_the_next(cache: Path | None = None) -> Path:
    """The same of the next release; setuid programs are this one's."""
    programs = (*PROGRAMS, *LIBRARIES_THERE)
    return unpacked.build("containers-next", programs, suite=NEXT_RELEASE, libraries=["uidmap"], cache=cache)


if __name__ == "__main__":
    print(of_this_release())
    print(of_the_next())
