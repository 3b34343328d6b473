"""ping(8), which gives up early: after the last of several requests it waits for no more than twice the longest round
trip there was, or for an interval. Until a deadline it goes on, and ends with the last answer that was asked for."""

from __future__ import annotations

import re

DEADLINE_S = 40


def echoes(count: int, interval_s: float) -> str:
    """Options for so many answers, whenever they come."""
    return f"-n -c {count} -i {interval_s:g} -w {DEADLINE_S}"


def all_answered(output: str, count: int) -> bool:
    """Whether each of the first requests was answered once, in this order: none was lost, or came twice."""
    return [int(number) for number in re.findall(r" icmp_seq=(\d+) ttl=", output)] == [*range(1, count + 1)]
