"""A network namespace as guest, of root: by the name that `ip netns add` gave it, set up by `--config-net`.

What test_pasta_guest.py checks of the ways to the world is checked here, too, without a client in the guest.
"""

from __future__ import annotations

import ipaddress
import os
import pwd
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.guest.image import Image
from tests.integration import test_forward, test_ping, test_tcp, test_udp
from tests.integration.conftest import FORWARDS
from tests.integration.daemon import daemon_directory
from tests.integration.namespace_guest import NamespaceDaemon, NamespaceGuest, checks
from tests.integration.test_tcp import random_file  # noqa: F401 # a fixture
from tests.integration.topology import (
    GATEWAY4,
    GATEWAY6,
    HOST4,
    HOST6,
    PREFIX4,
    PREFIX6,
    RESOLVER4,
    RESOLVER6,
    SEARCH,
    Namespace,
    Topology,
    named_namespace,
)
