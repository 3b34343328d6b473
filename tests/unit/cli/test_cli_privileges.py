"""Who a daemon goes on as: what `--runas` says, who it is without, and that there is no way back."""

import grp
import os
import pwd
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from trio_passt.cli import privileges
from trio_passt.cli.privileges import NotAllowedError, become, is_real_root, next_user, run_as
from trio_passt.cli.values import UsageError
from trio_passt.config import RunAs
from trio_passt.errors import StartupError
from trio_passt.host import apart, discovery, identity, netlink
from trio_passt.host.network import Host

only_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may become somebody else")

USERS = {"nobody": (65534, 65533), "guests": (1001, 100)}
GROUPS = {"users": 100, "kvm": 108}


@pytest.fixture
def accounts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two users and two groups."""

    def by_name(name: str) -> SimpleNamespace:
        uid, gid = USERS[name]
        return SimpleNamespace(pw_uid=uid, pw_gid=gid)

    def by_number(number: int) -> SimpleNamespace:
        return SimpleNamespace(pw_gid=dict(USERS.values())[number])

    monkeypatch.setattr(pwd, "getpwnam", by_name)
    monkeypatch.setattr(pwd, "getpwuid", by_number)
    monkeypatch.setattr(grp, "getgrnam", lambda name: SimpleNamespace(gr_gid=GROUPS[name]))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("0", RunAs(0, 0)),
        ("1001", RunAs(1001, 100)),
        ("5000", RunAs(5000, 5000)),
        ("1001:7", RunAs(1001, 7)),
        ("1001:kvm", RunAs(1001, 108)),
        ("guests", RunAs(1001, 100)),
        ("guests:kvm", RunAs(1001, 108)),
        ("guests:7", RunAs(1001, 7)),
        ("4294967294:4294967294", RunAs(2**32 - 2, 2**32 - 2)),
    ],
)
@pytest.mark.usefixtures("accounts")
def test_users(value: str, expected: RunAs) -> None:
    assert run_as("--runas", value) == expected


FORM = "UID, UID:GID, LOGIN or LOGIN:GROUP is expected"


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("", FORM),
        (":", FORM),
        (":7", FORM),
        ("1001:", FORM),
        ("guests:", FORM),
        ("unknown", "there is no user 'unknown'"),
        ("-1", "there is no user '-1'"),
        ("guests:unknown", "there is no group 'unknown'"),
        ("1:2:3", "there is no group '2:3'"),
        ("4294967295", "4294967295 is larger than 4294967294, the largest user or group"),
        ("0:99999999999999999999", "99999999999999999999 is larger than 4294967294, the largest user or group"),
        ("٣", "there is no user '٣'"),
    ],
)
@pytest.mark.usefixtures("accounts")
def test_what_is_no_user(value: str, reason: str) -> None:
    with pytest.raises(UsageError) as caught:
        run_as("--runas", value)
    assert str(caught.value) == f"invalid value '{value}' for option '--runas': {reason}"


@pytest.mark.parametrize(
    ("uid", "uid_map", "expected"),
    [
        (1000, "0 0 4294967295\n", False),
        (0, "         0          0 4294967295\n", True),
        (0, "         0       1000          1\n", False),
        (0, None, True),
    ],
)
def test_root_of_a_user_namespace_is_none(
    monkeypatch: pytest.MonkeyPatch, uid: int, uid_map: str | None, expected: bool
) -> None:
    def read_text(path: Path) -> str:
        if uid_map is None:
            raise FileNotFoundError(path)
        return uid_map

    monkeypatch.setattr(os, "geteuid", lambda: uid)
    monkeypatch.setattr(Path, "read_text", read_text)
    assert is_real_root() is expected


@pytest.mark.parametrize(
    ("root", "ids", "asked_for", "expected"),
    [
        (True, (0, 0), None, RunAs(65534, 65533)),
        (True, (0, 0), RunAs(0, 0), None),
        (True, (0, 0), RunAs(0, 7), RunAs(0, 7)),
        (True, (0, 0), RunAs(1001, 100), RunAs(1001, 100)),
        (False, (0, 0), None, None),
        (False, (0, 0), RunAs(7, 7), RunAs(7, 7)),
        (False, (1001, 100), None, None),
        (False, (1001, 100), RunAs(1001, 100), None),
        (False, (1001, 100), RunAs(1001, 7), RunAs(1001, 7)),
    ],
)
@pytest.mark.usefixtures("accounts")
def test_who_comes_next(
    monkeypatch: pytest.MonkeyPatch, root: bool, ids: tuple[int, int], asked_for: RunAs | None, expected: RunAs | None
) -> None:
    monkeypatch.setattr(privileges, "is_real_root", lambda: root)
    monkeypatch.setattr(os, "geteuid", lambda: ids[0])
    monkeypatch.setattr(os, "getegid", lambda: ids[1])
    assert next_user(asked_for) == expected


def test_nobody_has_a_number_even_without_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(name: str) -> None:
        raise KeyError(name)

    monkeypatch.setattr(privileges, "is_real_root", lambda: True)
    monkeypatch.setattr(pwd, "getpwnam", unknown)
    assert next_user(None) == RunAs(65534, 65534)


def status() -> dict[str, list[str]]:
    """What the kernel says of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return {name: values.split() for name, _, values in (line.partition(":") for line in lines)}


NO_CAPABILITIES = {name: ["0000000000000000"] for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")}


@only_root
def test_there_is_no_way_back() -> None:
    def change() -> tuple[dict[str, list[str]], str]:
        os.setgroups([0, 4])
        become(RunAs(61124, 61125))
        with pytest.raises(StartupError) as caught:
            become(RunAs(0, 0))
        return status(), str(caught.value)

    said, reason = apart.in_child(change)
    assert said["Uid"] == ["61124"] * 4
    assert said["Gid"] == ["61125"] * 4
    assert said["Groups"] == []
    assert said == said | NO_CAPABILITIES | {"NoNewPrivs": ["1"]}
    needs = "only root may, or who has CAP_SETUID and CAP_SETGID"
    assert reason == f"can't go on as user 0, group 0: Operation not permitted ({needs})"


NET_BIND_SERVICE = "0000000000000400"


@only_root
def test_one_who_binds_ports_later_may_still_bind_low_ones() -> None:
    def change() -> tuple[dict[str, list[str]], str]:
        become(RunAs(61124, 61125), binds_later=True)
        with pytest.raises(StartupError) as caught:
            become(RunAs(0, 0))
        return status(), str(caught.value)

    said, reason = apart.in_child(change)
    expected = NO_CAPABILITIES | {"CapPrm": [NET_BIND_SERVICE], "CapEff": [NET_BIND_SERVICE], "NoNewPrivs": ["1"]}
    assert said == said | expected | {"Uid": ["61124"] * 4}
    assert reason.startswith("can't go on as user 0")


@only_root
@pytest.mark.parametrize("had_it", [True, False])
def test_it_is_kept_only_if_it_was_there(had_it: bool) -> None:
    def change() -> dict[str, list[str]]:
        if not had_it:
            identity.give_up_capabilities()
        identity.give_up_capabilities(but_binding=True)
        return status()

    said = apart.in_child(change)
    left = {name: [NET_BIND_SERVICE] for name in ("CapPrm", "CapEff") if had_it}
    assert said == said | NO_CAPABILITIES | left


@only_root
def test_capabilities_of_one_who_was_not_root_go_as_well() -> None:
    """The kernel takes them from root only: here they are ambient ones of an ordinary user."""
    script = """
import sys
from pathlib import Path
from trio_passt.cli.privileges import become
from trio_passt.config import RunAs
before = Path("/proc/self/status").read_text()
become(RunAs(61125, 61125))
print(before, Path("/proc/self/status").read_text(), sep="---")
"""
    capabilities = "+setuid,+setgid,+net_bind_service"
    ids = ("--reuid=61124", "--regid=61124", "--clear-groups")
    result = subprocess.run(
        ["setpriv", *ids, f"--inh-caps={capabilities}", f"--ambient-caps={capabilities}", sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        cwd="/",
        capture_output=True,
        text=True,
        check=True,
    )
    before, _, after = result.stdout.partition("---")
    assert "CapEff:\t00000000000004c0" in before
    assert "Uid:\t61125\t61125\t61125\t61125" in after
    for name, (value,) in NO_CAPABILITIES.items():
        assert f"{name}:\t{value}" in after


def test_the_first_look_at_the_host_is_the_next_users(monkeypatch: pytest.MonkeyPatch) -> None:
    became: list[RunAs] = []
    monkeypatch.setattr(privileges, "become", became.append)

    def discover(*, become: Callable[[], None]) -> Host:
        become()
        return Host()

    monkeypatch.setattr(discovery, "discover", discover)
    assert privileges.discover_as(RunAs(7, 8)) == Host()
    assert became == [RunAs(7, 8)]


def test_what_the_next_user_can_not_import_is_imported_before(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []

    def discover(*, become: Callable[[], None] | None = None) -> Host:
        if become is not None:
            raise StartupError("can't read the host's interfaces and routes: ModuleNotFoundError(...)")
        done.append("look")
        return Host()

    monkeypatch.setattr(discovery, "discover", discover)
    monkeypatch.setattr(netlink, "read_host_network", lambda: done.append("import"))
    assert privileges.discover_as(RunAs(7, 8)) == Host()
    assert done == ["import", "look"]


def test_one_who_may_not_become_another_need_not_try_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def discover(*, become: Callable[[], None]) -> Host:
        raise NotAllowedError("no")

    monkeypatch.setattr(discovery, "discover", discover)
    with pytest.raises(StartupError, match=r"^no$"):
        privileges.discover_as(RunAs(7, 8))


@only_root
def test_the_real_host_as_seen_by_somebody_else() -> None:
    assert {link.name for link in privileges.discover_as(RunAs(61124, 61124)).links} >= {"lo"}
