"""Errors that end the program, each with a text made for its user."""


class StartupError(Exception):
    """The daemon can't start; the text names what and why, on one line, without the program's name."""
