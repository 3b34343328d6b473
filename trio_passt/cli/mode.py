"""Which of its programs this is: the name by which it was called says so, as with passt and pasta."""

import sys
from enum import Enum
from pathlib import PurePath


class Mode(Enum):
    """By the names of the programs."""

    VM = "trio-passt"
    NAMESPACE = "trio-pasta"
    SLIRP4NETNS = "trio-slirp4netns"


def mode_of(path: str) -> Mode:
    """Of a program that was called so: the word counts in `trio-pasta`, `pasta.avx2`, or a link that is `my-pasta`."""
    name = PurePath(path).name
    if "slirp4netns" in name:
        return Mode.SLIRP4NETNS
    return Mode.NAMESPACE if "pasta" in name else Mode.VM


MODE = mode_of(sys.argv[0] if sys.argv else "")
"""Of this process."""

PROGRAM = MODE.value
"""What its messages begin with."""
