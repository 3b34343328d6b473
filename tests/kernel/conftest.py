"""The fixtures of the integration tests, for a guest with a kernel of its own."""

from tests.integration.conftest import directory, pytest_configure, topology

__all__ = ["directory", "pytest_configure", "topology"]
