"""The commands `trio-passt`, `trio-pasta` and `trio-slirp4netns`, and `python -m trio_passt`."""

import signal
import sys


def run() -> int:
    """Import the program and call it.

    That takes a quarter of a second, in which a signal would be answered with a traceback (SIGINT), or kill a process
    that is only asked how it is (SIGUSR1).
    """
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    interrupt = signal.signal(signal.SIGINT, signal.SIG_DFL)
    from trio_passt.cli.mode import MODE, Mode

    if MODE is Mode.SLIRP4NETNS:
        from trio_passt.slirp4netns.main import main
    else:
        from trio_passt.cli.main import main

    signal.signal(signal.SIGINT, interrupt)
    return main()


if __name__ == "__main__":
    sys.exit(run())
