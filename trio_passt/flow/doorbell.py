"""How a task that sleeps is woken by those who do not: the task of a flow's life (`life`), by whoever resumes it."""

import trio


class Doorbell:
    """One sleeper, and any number of synchronous callers who ring.

    A ring while nobody sleeps is remembered; several rings before the sleeper runs are one.
    """

    __slots__ = ("_rung", "_sleeper")

    def __init__(self) -> None:
        self._rung = False
        self._sleeper: trio.lowlevel.Task | None = None

    def ring(self) -> None:
        """Wake the sleeper, now or at its next `wait`."""
        if self._sleeper is None:
            self._rung = True
        else:
            sleeper, self._sleeper = self._sleeper, None
            trio.lowlevel.reschedule(sleeper)

    async def wait(self) -> None:
        """Sleep until rung.  Always a checkpoint, also when a ring was remembered."""
        if self._rung:
            self._rung = False
            await trio.lowlevel.checkpoint()
            return
        self._sleeper = trio.lowlevel.current_task()

        def forget(_raise_cancel: object) -> trio.lowlevel.Abort:
            self._sleeper = None
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(forget)
        self._rung = False
