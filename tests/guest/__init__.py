"""A small Linux guest built from Debian packages, for the integration tests and the demo.

Only the standard library is used: the demo runs this with the system's Python.
"""
