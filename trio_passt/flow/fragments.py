"""The guest's packets that come in fragments, and what it is told about those that never become whole."""

from typing import overload

import trio

from trio_passt.flow.reports import report
from trio_passt.flow.session import Session
from trio_passt.flow.translate import is_unicast
from trio_passt.wire import icmp
from trio_passt.wire.icmp import IcmpMessage, IcmpType, Icmpv6Type
from trio_passt.wire.ipv4 import IPv4Header
from trio_passt.wire.ipv6 import IPv6Header
from trio_passt.wire.reassembly import FragmentProblem, Reassembly


class Fragments:
    """`wire.reassembly` at work for one guest; `run` is its clock."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._reassembly = Reassembly(session.drops)
        self._has_some = trio.Event()

    @overload
    def take(self, header: IPv4Header, payload: memoryview) -> tuple[IPv4Header, memoryview] | None: ...

    @overload
    def take(self, header: IPv6Header, payload: memoryview) -> tuple[IPv6Header, memoryview] | None: ...

    def take(
        self, header: IPv4Header | IPv6Header, payload: memoryview
    ) -> tuple[IPv4Header | IPv6Header, memoryview] | None:
        """A fragment; the whole packet, as if it had been parsed, if this was the last one that was missing.

        Raises MalformedPacket.
        """
        self._has_some.set()
        return self._reassembly.take(header, payload, trio.current_time())

    async def run(self) -> None:
        """Give up what never becomes whole, in time, and tell the guest, until cancelled."""
        while True:
            await self._has_some.wait()
            self._has_some = trio.Event()
            while (deadline := self._reassembly.next_deadline) is not None:
                await trio.sleep_until(deadline)
                for one in self._reassembly.expire(trio.current_time()):
                    type_ = IcmpType.TIME_EXCEEDED if len(one.source) == 4 else Icmpv6Type.TIME_EXCEEDED
                    message = icmp.error(type_, icmp.REASSEMBLY_TIME_EXCEEDED, 0, one.packet)
                    self._report(one.destination, one.source, message)

    def report_problem(self, problem: FragmentProblem) -> None:
        """Tell the guest what was wrong with a fragment."""
        message = icmp.error(Icmpv6Type.PARAMETER_PROBLEM, 0, problem.pointer, problem.packet)
        self._report(problem.destination, problem.source, message)

    def _report(self, remote: bytes, guest: bytes, message: IcmpMessage) -> None:
        """There is no error about a packet that was no one's, or everybody's (RFC 1122 section 3.2.2)."""
        is_for_neighbours = self._session.addresses.is_for_neighbours(remote)
        if is_unicast(guest) and is_unicast(remote) and not is_for_neighbours:
            report(self._session, remote, guest, message)
