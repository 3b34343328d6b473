"""Who this process is, and what it may do: changed once, for good (credentials(7), capabilities(7)).

All of it is this process's only thread's; the functions raise OSError.
"""

import os
import struct

from trio_passt.config import RunAs
from trio_passt.host.libc import call

_PR_SET_KEEPCAPS, _PR_SET_NO_NEW_PRIVS = 8, 38
_CAPABILITY_VERSION_3 = 0x20080522
"""capset(2): then there are two times three words: effective, permitted, inheritable; the lower halves come first."""

_NET_BIND_SERVICE = 1 << 10


def become(user: RunAs, *, keeps_capabilities: bool = False) -> None:
    """Be that user, in no other group than its own; root's capabilities go with it unless they are to be kept."""
    os.setgroups([])
    os.setresgid(user.gid, user.gid, user.gid)
    if keeps_capabilities:
        call("prctl", _PR_SET_KEEPCAPS, 1, 0, 0, 0)
    os.setresuid(user.uid, user.uid, user.uid)


def give_up_capabilities(*, but_binding: bool = False) -> None:
    """All of them, or all but CAP_NET_BIND_SERVICE, if that is there.

    setresuid(2) has done so if we were root, see capabilities(7); unless they were kept for that.
    """
    header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
    kept = _NET_BIND_SERVICE if but_binding else 0
    try:
        call("capset", header, struct.pack("=III", kept, kept, 0) + bytes(12))
    except OSError:
        if not kept:
            raise
        give_up_capabilities()


def gain_no_more() -> None:
    """No program that is executed brings privileges back (PR_SET_NO_NEW_PRIVS)."""
    call("prctl", _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
