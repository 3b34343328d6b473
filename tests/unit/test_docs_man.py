"""The manual pages say what the programs say, and roff(7) has nothing to say about them."""

import os
import re
import runpy
import shutil
import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from trio_passt.cli.getopt import Option
from trio_passt.cli.messages import help_text
from trio_passt.cli.mode import Mode
from trio_passt.cli.option_table import options
from trio_passt.slirp4netns.main import help_text as slirp4netns_help
from trio_passt.slirp4netns.option_table import OPTIONS as SLIRP4NETNS_OPTIONS

DOCS = Path(__file__).parents[2] / "docs"
PAGES = [DOCS / f"{mode.value}.1" for mode in Mode]

OPTIONS: list[tuple[Mode, Option, Callable[[], str]]] = [
    *((Mode.VM, option, lambda: help_text(Mode.VM)) for option in options(Mode.VM)),
    *((Mode.NAMESPACE, option, lambda: help_text(Mode.NAMESPACE)) for option in options(Mode.NAMESPACE)),
    *((Mode.SLIRP4NETNS, option, slirp4netns_help) for option in SLIRP4NETNS_OPTIONS),
]

with_groff = pytest.mark.skipif(shutil.which("groff") is None, reason="groff is not installed")
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def groff(page: str) -> tuple[str, str]:
    """The page as plain text on one very long line each, and what groff warns of."""
    command = ["groff", "-man", "-ww", "-Tascii", "-P-cbou", "-rLL=2000n", "-rLT=2000n"]
    environment = {**os.environ, "GROFF_NO_SGR": "1", "LC_ALL": "C.UTF-8"}
    done = subprocess.run(command, input=page, capture_output=True, text=True, check=True, env=environment)
    return done.stdout, done.stderr


@pytest.fixture(scope="module")
def shown() -> dict[str, str]:
    """The pages as they are read, blanks made one each."""
    return {page.stem: re.sub(r"\s+", " ", groff(page.read_text("utf-8"))[0]) for page in PAGES}


def test_they_are_what_the_generator_writes() -> None:
    written = runpy.run_path(str(DOCS / "write_man.py"))["pages"]()
    assert sorted(written) == sorted(page.name for page in PAGES) == sorted(page.name for page in DOCS.glob("*.1"))
    for page in PAGES:
        assert page.read_text("utf-8") == written[page.name], "python docs/write_man.py"


@with_groff
@each_page
def test_groff_has_no_warnings(page: Path) -> None:
    assert groff(page.read_text("utf-8"))[1] == ""
    assert groff(page.read_text("utf-8") + ".XY\n")[1] != ""


@each_page
def test_no_line_is_a_request_by_accident(page: Path) -> None:
    known = re.compile(r"\.(\\\"|TH|SH|SS|PP|TP|EX|EE|in|br)( |$)")
    for line in page.read_text("utf-8").splitlines():
        assert line.startswith(("'", ".")) == bool(known.match(line)), line
        assert "-" not in line.replace("\\-", "").replace("2026-11-29", "").replace(
            '.\\" Written by', ""
        ) or known.match(line)


@with_groff
@pytest.mark.parametrize(
    ("mode", "option", "help_page"), OPTIONS, ids=[f"{mode.name.lower()}-{option.key}" for mode, option, _ in OPTIONS]
)
def test_each_option_is_in_the_page_and_in_the_help(
    mode: Mode, option: Option, help_page: Callable[[], str], shown: dict[str, str]
) -> None:
    names = ", ".join(([f"-{option.short}"] if option.short else []) + [f"--{name}" for name in option.names])
    argument = f" {option.argument}" if option.argument else ""
    assert f" {names}{argument} {option.help} " in shown[mode.value]
    text = re.sub(r"\s+", " ", help_page()) + " "
    short = f"-{option.short}, " if option.short else ""
    assert f" {short}--{option.key}{argument} {option.help} " in text
    for alias in option.names[1:]:
        assert f"--{alias}" in text


@with_groff
def test_what_is_written_as_it_stands_reads_so(shown: dict[str, str]) -> None:
    """Characters that mean something to roff."""
    for text in (
        "NAME trio-passt - network for",
        "trio-passt -t 2222:22 -s /tmp/guest.socket qemu-system-x86_64 -m 1G disk.qcow2",
        "-device virtio-net-pci,netdev=n \\ -netdev stream,id=n,server=off",
        "~22,~8000-8010 The same, without these.",
        '<range start="2222" to="22"/>',
        "The guest's",
        "127.0.0.1/2222:22,8080",
        "SIGUSR1",
        "net.ipv4.ip_unprivileged_port_start",
    ):
        assert text in shown["trio-passt"]
    for text in (
        "SYNOPSIS trio-pasta [OPTION]... [COMMAND [ARG]...] trio-pasta [OPTION]... PID trio-pasta [OPTION]... --netns",
        "~22,auto The same, without 22.",
        "trio-pasta curl https://example.org/",
        "unshare -rUn sleep 1d & trio-pasta --config-net $!",
    ):
        assert text in shown["trio-pasta"]
    for text in (
        "trio-slirp4netns [OPTION]... PID|PATH [TAPNAME]",
        '{"execute": "remove_hostfwd", "arguments": {"id": 1}} {"return":{}}',
    ):
        assert text in shown["trio-slirp4netns"]


def test_they_are_installed_with_the_programs() -> None:
    project = tomllib.loads((DOCS.parent / "pyproject.toml").read_text("utf-8"))
    shared = project["tool"]["hatch"]["build"]["targets"]["wheel"]["shared-data"]
    assert {f"docs/{page.name}": f"share/man/man1/{page.name}" for page in PAGES}.items() <= shared.items()
    assert set(project["project"]["scripts"]) == {page.stem for page in PAGES}
