"""A bound on the memory that all flows of a guest hold together."""


class Budget:
    """So many bytes, taken and given back."""

    __slots__ = ("left_bytes",)

    def __init__(self, total_bytes: int) -> None:
        self.left_bytes = total_bytes

    def take(self, count: int) -> bool:
        """Take `count` bytes, or nothing, and false, if there are fewer left."""
        if count > self.left_bytes:
            return False
        self.left_bytes -= count
        return True

    def give_back(self, count: int) -> None:
        """`count` bytes that were taken are free again."""
        self.left_bytes += count
