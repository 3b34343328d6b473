"""When a namespace is gone: real processes, files and mounts, waited for without asking again and again."""

import os
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from processes_here import WAIT_S, descriptors

from trio_passt.config import Namespace
from trio_passt.errors import StartupError
from trio_passt.namespace import departure as departure_module
from trio_passt.namespace.departure import PathGoes, ProcessEnds, departure


@pytest.fixture(autouse=True)
def no_descriptors_are_left() -> Iterator[None]:
    before = descriptors()
    yield
    assert descriptors() == before


@asynccontextmanager
async def waiting_for(wanted: Namespace) -> AsyncIterator[list[str]]:
    """The reason is in the list, soon after the block."""
    gone = departure(wanted)
    reasons: list[str] = []

    async def wait() -> None:
        reasons.append(await gone.wait())

    try:
        with trio.fail_after(WAIT_S):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(wait)
                await trio.sleep(0.02)
                assert not reasons
                yield reasons
    finally:
        gone.close()


async def test_process() -> None:
    process = sleep()
    async with waiting_for(Namespace(pid=process.pid)) as reasons:
        process.kill()
    assert reasons == [f"process {process.pid} has ended"]
    assert process.wait() == -9


@pytest.mark.parametrize("path", ["/proc/{}/ns/net", "/proc/{}/task/{}/ns/net"])
async def test_path_of_a_process(path: str, tmp_path: Path) -> None:
    process = sleep()
    named = Path(path.format(process.pid, process.pid))
    await trio.Path(tmp_path / "link").symlink_to(named)
    for one in (named, tmp_path / "link"):
        gone = departure(Namespace(path=one))
        assert isinstance(gone, ProcessEnds)
        gone.close()
    async with waiting_for(Namespace(path=named)):
        process.kill()
    process.wait()


def test_no_such_process() -> None:
    process = subprocess.Popen(["true"])
    process.wait()
    with pytest.raises(StartupError, match=f"no process {process.pid}"):
        departure(Namespace(pid=process.pid))
    with pytest.raises(StartupError, match=f"no process {process.pid}"):
        departure(Namespace(path=Path(f"/proc/{process.pid}/ns/net")))


def unlink(path: Path) -> None:
    path.unlink()


def rename_away(path: Path) -> None:
    path.rename(path.parent.parent / "elsewhere")


def replace(path: Path) -> None:
    other = path.with_name("other")
    other.touch()
    other.rename(path)


def remove_directory(path: Path) -> None:
    path.unlink()
    path.parent.rmdir()


def rename_directory(path: Path) -> None:
    path.parent.rename(path.parent.with_name("elsewhere"))


@pytest.mark.parametrize("go", [unlink, rename_away, replace, remove_directory, rename_directory])
async def test_path(go: Callable[[Path], None], tmp_path: Path) -> None:
    path = tmp_path / "directory" / "file"
    make(path)
    async with waiting_for(Namespace(path=path)) as reasons:
        (path.parent / "unrelated").touch()
        (path.parent / "unrelated").unlink()
        await trio.sleep(0.02)
        assert not reasons
        go(path)
    assert reasons == [f"{path} is gone"]


async def test_path_by_a_link(tmp_path: Path) -> None:
    make(tmp_path / "directory" / "file")
    await trio.Path(tmp_path / "link").symlink_to(Path("directory", "file"))
    async with waiting_for(Namespace(path=tmp_path / "link")) as reasons:
        unlink(tmp_path / "directory" / "file")
    assert reasons == [f"{tmp_path / 'link'} is gone"]


async def test_path_that_is_unmounted(tmp_path: Path) -> None:
    """As nsfs files are, in a directory where nothing else happens."""
    path, other = tmp_path / "file", tmp_path / "other"
    make(path)
    make(other)
    mount("/proc/self/ns/ipc", path)
    try:
        async with waiting_for(Namespace(path=path)) as reasons:
            mount("/proc/self/ns/ipc", other)
            unmount(other)
            await trio.sleep(0.05)
            assert not reasons
            unmount(path)
        assert reasons == [f"{path} is gone"]
    finally:
        if str(path) in await trio.Path("/proc/self/mountinfo").read_text():
            unmount(path)


async def test_it_is_not_waited_for_if_nobody_wants_to(tmp_path: Path) -> None:
    gone = departure(Namespace(path=tmp_path / "file", quits=False))
    with trio.move_on_after(0.05) as waited:
        await gone.wait()
    assert waited.cancelled_caught
    gone.close()


async def test_nothing_is_done_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path / "file")
    looked = []
    gone = PathGoes(tmp_path / "file")
    original = departure_module._identity
    monkeypatch.setattr(departure_module, "_identity", lambda path: looked.append(path) or original(path))
    with trio.move_on_after(0.3):
        await gone.wait()
    gone.close()
    assert len(looked) < 20, "other processes may mount something meanwhile"


def test_no_more_watches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str, *_arguments: object) -> int:
        raise OSError(24, os.strerror(24))

    make(tmp_path / "file")
    monkeypatch.setattr(departure_module, "call", refuse)
    with pytest.raises(StartupError, match=f"can't watch {tmp_path / 'file'}: Too many open files"):
        departure(Namespace(path=tmp_path / "file"))


def make(path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    path.touch()


def mount(what: str, where: Path) -> None:
    subprocess.run(["mount", "--bind", what, where], check=True)


def unmount(path: Path) -> None:
    subprocess.run(["umount", path], check=True)


def sleep() -> subprocess.Popen[bytes]:
    return subprocess.Popen(["sleep", "1000"])
