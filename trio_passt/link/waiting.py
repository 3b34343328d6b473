"""Who waits for room on a link: called back once, first come, first served."""

from collections import OrderedDict
from collections.abc import Callable


class WaitingLine:
    """Callbacks in the order in which they came; each is there once."""

    def __init__(self) -> None:
        self._callbacks: OrderedDict[Callable[[], None], None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._callbacks)

    def add(self, callback: Callable[[], None]) -> None:
        """At the end, unless it waits already."""
        self._callbacks[callback] = None

    def forget(self, callback: Callable[[], None]) -> None:
        """Do not call it, if it waits."""
        self._callbacks.pop(callback, None)

    def call_back(self, is_full: Callable[[], bool]) -> None:
        """Call those who wait now; should one of them fill the link itself, the next one is first the time after."""
        for _ in range(len(self._callbacks)):
            if is_full() or not self._callbacks:
                return
            self._call_first()

    def _call_first(self) -> None:
        callback, _ = self._callbacks.popitem(last=False)
        callback()
