"""How many times in a row something has gone well."""


class Streak:
    """A count that whoever sees it go well adds to, and whoever sees it go wrong sets to 0."""

    __slots__ = ("length",)

    def __init__(self) -> None:
        self.length = 0
