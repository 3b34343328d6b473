"""The manual page says what the program says, and roff(7) has nothing to say about it."""

import os
import re
import runpy
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

from trio_passt.cli.getopt import Option
from trio_passt.cli.messages import help_text
from trio_passt.cli.option_table import OPTIONS, SECTIONS

DOCS = Path(__file__).parents[2] / "docs"
PAGE = DOCS / "trio-passt.1"

with_groff = pytest.mark.skipif(shutil.which("groff") is None, reason="groff is not installed")


def groff(page: str) -> tuple[str, str]:
    """The page as plain text on one very long line each, and what groff warns of."""
    command = ["groff", "-man", "-ww", "-Tascii", "-P-cbou", "-rLL=2000n", "-rLT=2000n"]
    environment = {**os.environ, "GROFF_NO_SGR": "1", "LC_ALL": "C.UTF-8"}
    done = subprocess.run(command, input=page, capture_output=True, text=True, check=True, env=environment)
    return done.stdout, done.stderr


@pytest.fixture(scope="module")
def shown() -> str:
    """The page as it is read, blanks made one each."""
    return re.sub(r"\s+", " ", groff(PAGE.read_text("utf-8"))[0])


def test_it_is_what_the_generator_writes() -> None:
    page = runpy.run_path(str(DOCS / "write_man.py"))["page"]
    assert PAGE.read_text("utf-8") == page(), "python docs/write_man.py >docs/trio-passt.1"


@with_groff
def test_groff_has_no_warnings() -> None:
    assert groff(PAGE.read_text("utf-8"))[1] == ""
    assert groff(PAGE.read_text("utf-8") + ".XY\n")[1] != ""


def test_no_line_is_a_request_by_accident() -> None:
    known = re.compile(r"\.(\\\"|TH|SH|SS|PP|TP|EX|EE|in)( |$)")
    for line in PAGE.read_text("utf-8").splitlines():
        assert line.startswith(("'", ".")) == bool(known.match(line)), line
        assert "-" not in line.replace("\\-", "").replace("2026-11-29", "").replace(
            '.\\" Written by', ""
        ) or known.match(line)


@with_groff
@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.key)
def test_each_option_is_in_the_page_and_in_the_help(option: Option, shown: str) -> None:
    names = ", ".join(([f"-{option.short}"] if option.short else []) + [f"--{name}" for name in option.names])
    argument = f" {option.argument}" if option.argument else ""
    assert f" {names}{argument} {option.help} " in shown
    text = re.sub(r"\s+", " ", help_text(SECTIONS))
    short = f"-{option.short}, " if option.short else ""
    assert f" {short}--{option.key}{argument} {option.help} " in text
    for alias in option.names[1:]:
        assert f"--{alias}" in text


@with_groff
def test_what_is_written_as_it_stands_reads_so(shown: str) -> None:
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
        assert text in shown


def test_it_is_installed_with_the_program() -> None:
    project = tomllib.loads((DOCS.parent / "pyproject.toml").read_text("utf-8"))
    shared = project["tool"]["hatch"]["build"]["targets"]["wheel"]["shared-data"]
    assert shared[f"docs/{PAGE.name}"] == f"share/man/man1/{PAGE.name}"
