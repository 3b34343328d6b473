"""A small Linux guest built from Debian packages, for the integration tests and the demo. Standard library only."""
