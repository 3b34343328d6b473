"""The host's network changes under a running daemon: seen, decided, said in the log, and handed on."""

import logging
from collections.abc import Callable, Iterator

import trio

from trio_passt.config import GuestIPv4, GuestIPv6, GuestNetwork, Wishes
from trio_passt.errors import StartupError
from trio_passt.host.discovery import discover_again
from trio_passt.host.guest_network import decide, terms
from trio_passt.host.watch import HostWatch

log = logging.getLogger("trio_passt.host")

PAUSE_S = 1.0
"""Between two looks, each of which costs a process: a host whose routes flap is not followed at each step."""

LOOK_TIMEOUT_S = 30.0
"""Usually it takes 0.2 s."""

RETRY_S = 5.0
"""When the host could not be looked at: it has no memory or no processes left, for example."""


class _NoLook(Exception):  # noqa: N818 - it is tried again
    """The host could not be looked at."""


async def follow(
    watch: HostWatch,
    wishes: Wishes,
    network: GuestNetwork,
    on_change: Callable[[GuestNetwork], None],
    on_look: Callable[[], object] = lambda: None,
) -> None:
    """Call `on_change` with each new network of the guest's, until cancelled; `network` is what it was told first.

    `on_look` is called before that, also if nothing changes for the guest: something has changed at the host.
    """
    told, has_failed = network, False
    await watch.changed()
    while True:
        try:
            now = await _look(wishes, told)
        except _NoLook as reason:
            level = logging.DEBUG if has_failed else logging.WARNING
            log.log(level, "can't look at the host's network, which has changed: %s", reason)
            has_failed = True
            await trio.sleep(RETRY_S)
            continue
        has_failed = False
        on_look()
        if now != told:
            for level, line in describe(told, now):
                log.log(level, "%s", line)
            told = now
            on_change(now)
        await trio.sleep(PAUSE_S)
        await watch.changed()


async def _look(wishes: Wishes, told: GuestNetwork) -> GuestNetwork:
    """What holds now.  Raises `_NoLook` with the reason."""
    try:
        with trio.fail_after(LOOK_TIMEOUT_S):
            host = await discover_again()
    except trio.TooSlowError:
        raise _NoLook(f"no answer for {LOOK_TIMEOUT_S:.0f} s") from None
    except (OSError, RuntimeError, StartupError) as error:
        raise _NoLook(str(error)) from error
    return decide(wishes, host, told).network


def describe(told: GuestNetwork, now: GuestNetwork) -> Iterator[tuple[int, str]]:
    """Lines for the log, with their levels: what is new, and what the guest does about it or has to be made to do."""
    for version, before, after, was_offline, is_offline in (
        (4, told.ipv4, now.ipv4, told.ipv4_offline, now.ipv4_offline),
        (6, told.ipv6, now.ipv6, told.ipv6_offline, now.ipv6_offline),
    ):
        had_network = before is not None and not before.is_local
        if had_network and is_offline and not was_offline:
            yield logging.INFO, f"the host has no IPv{version} default route any more: the guest keeps what it has"
        if had_network and was_offline and not is_offline:
            yield logging.INFO, f"the host has an IPv{version} default route again"
        if after is not None and after != before:
            may_keep = any(former.on_host and former.guest == before for former in now.former)
            yield _describe_family(version, before, after, may_keep=may_keep)
    still = {former.guest for former in told.former if former.on_host}
    for former in now.former:
        if former.guest in still and not former.on_host and former.guest.address.version == 4:
            text = f"the host has {former.guest.address} no more: a guest that has kept it gets another address"
            yield logging.WARNING, f"{text} when it renews its lease"
    if told.resolvers != now.resolvers:
        servers = ", ".join(map(str, (*now.resolvers.ipv4, *now.resolvers.ipv6))) or "none"
        search = " ".join(now.resolvers.search) or "none"
        text = f"the guest is to use other DNS servers or domains: {servers}; search: {search}"
        yield logging.INFO, f"{text} (told by router advertisement, and when it renews its lease)"


def _describe_family(
    version: int, before: GuestIPv4 | GuestIPv6 | None, after: GuestIPv4 | GuestIPv6, *, may_keep: bool
) -> tuple[int, str]:
    source = f" (from {after.interface})" if after.interface else ""
    text = f"the host's IPv{version} is now {after.address}/{after.prefix_length}, gateway {after.gateway}{source}"
    if before is not None and terms(before) == terms(after):
        return logging.INFO, f"{text}: nothing changes for the guest"
    if version == 6:
        return logging.INFO, f"{text}: the guest is told by a router advertisement"
    until = "hears of it when it"
    if before is not None and before.address != after.address:
        if may_keep:
            keeps = f"may keep {before.address}, which the host has, too"
            return logging.INFO, f"{text}: the guest {keeps}; one that releases its lease gets the new address"
        until = f"keeps {before.address} until it"
    renews = "renews its lease, which may take some minutes: renew it in the guest (dhclient, networkctl renew, ...)"
    return logging.WARNING, f"{text}: the guest {until} {renews} to have that at once"
