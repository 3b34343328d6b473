"""Ports for tests."""

import itertools
import random
import socket

import pytest

PORTS = itertools.cycle(random.sample(range(20_000, 32_000, 8), 1500))
"""Outside of what the kernel gives to others.  Those that follow one are free as well, and none comes again soon."""


def free_udp_port(family: int, address: str) -> int:
    """One that nobody has at this address."""
    for port in itertools.islice(PORTS, 100):
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            try:
                sock.bind((address, port))
            except OSError:  # in use
                continue
            return port
    pytest.fail("no free port")
