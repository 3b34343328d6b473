"""The fixtures of the integration tests, for a guest with a kernel of its own."""

from tests.integration.conftest import (
    directory,
    measurements,
    pytest_configure,
    pytest_terminal_summary,
    topology,
)

__all__ = ["directory", "measurements", "pytest_configure", "pytest_terminal_summary", "topology"]
