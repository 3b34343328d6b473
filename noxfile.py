"""Every check of the project. `sh tests/run.sh` runs all of them, and installs what they need first."""

from __future__ import annotations

import re
from pathlib import Path

import nox

nox.needs_version = ">=2024.4.15"
nox.options.error_on_missing_interpreters = True
nox.options.reuse_venv = "yes"

ROOT = Path(__file__).parent

QRAP = "contrib/qrap/qrap"
"""Has no suffix that would tell what it is."""

ON_ALL_CPUS = ("-p", "no:cacheprovider", "-n", "auto", "--dist", "loadfile")
"""For unit tests."""

IN_TWO_PROCESSES = ("-n", "2", "--no-loadscope-reorder", "-m", "not alone")
"""For integration tests: see tests/integration/sharing.py. What measures time runs after them."""


@nox.session
def lint(session: nox.Session) -> None:
    """Style and formatting, with ruff."""
    session.install(".[lint]")
    session.run("ruff", "check", ".", QRAP)
    session.run("ruff", "format", "--check", ".", QRAP)


@nox.session
def types(session: nox.Session) -> None:
    """Static types: the package, and the test harness."""
    session.install(".[types,test]", "nox")
    session.run("mypy")
    session.run("mypy", "--scripts-are-modules", QRAP)
    session.run("mypy", "tests/integration", "tests/guest", "tests/bench", "tests/kernel")


@nox.session
def unit(session: nox.Session) -> None:
    """Unit and platform tests, on all CPUs, with branch coverage; every warning is an error."""
    session.install(".[test]")
    session.run("pytest", *ON_ALL_CPUS, "--cov", "--cov-report=term", *session.posargs)


@nox.session
def integration(session: nox.Session) -> None:
    """Real guests, under QEMU and in namespaces, in namespaces of their own. Needs root."""
    session.install(".[test]")
    if session.posargs:
        where = [] if any(word.startswith("tests/") for word in session.posargs) else ["tests/integration"]
        session.run("pytest", "-p", "no:cacheprovider", *session.posargs, *where)
    else:
        session.run("pytest", "-p", "no:cacheprovider", *IN_TWO_PROCESSES, "tests/integration")
        session.run("pytest", "-p", "no:cacheprovider", "-m", "alone", "tests/integration")


@nox.session
def compiled(session: nox.Session) -> None:
    """The compiled build: connections of the kernel's stack and of QEMU, a smoke test of the benchmark. Needs root."""
    _install_compiled(session, "test,bench")
    folders = ("flow", "link", "local", "wire", "udp", "icmp")
    files = ("host/test_host_datagrams.py", "tcp/test_from_guest.py", "test_dispatch.py", "test_responder.py")
    units = [f"tests/unit/{name}" for name in (*folders, *files)]
    of_what_is_installed = ("-o", "pythonpath=", "-m", "not interpreted")  # not of the checkout
    not_compiled = [f"--ignore-glob=*/wire/*{name}*" for name in ("dhcp", "ndp", "domain", "arp", "pcap", "describe")]
    session.run("pytest", *ON_ALL_CPUS, *of_what_is_installed, *not_compiled, *units)
    names = ("kernel_guest", "lossy_link", "tcp", "forward", "udp_flows", "tap_link")
    tests = [f"tests/integration/test_{name}.py" for name in names]
    without = ("-k", "not parallel_connections and not far")
    session.run("pytest", "-p", "no:cacheprovider", *IN_TWO_PROCESSES, *without, *tests)
    session.run("python", "-m", "tests.bench", "--short", "--output", session.create_tmp())


@nox.session(default=False)
def bench(session: nox.Session) -> None:
    """Speed beside passt, pasta and slirp4netns, for half an hour, into docs/. Needs root. See -- --help."""
    _install_compiled(session, "bench")
    session.run("python", "-m", "tests.bench", *session.posargs)


def _install_compiled(session: nox.Session, extras: str) -> None:
    """With the modules that every frame passes compiled by mypyc; what the build makes leaves the checkout again."""
    settings = {"HATCH_BUILD_HOOK_ENABLE_MYPYC": "1", "HATCH_BUILD_CLEAN_HOOKS_AFTER": "1"}
    session.install(f".[{extras}]", env=settings)
    session.run("python", "-P", "-c", "import sys, trio_passt.tcp.seq as it; sys.exit(it.__file__.endswith('.py'))")


@nox.session(default=False)
def kernel(session: nox.Session) -> None:
    """A kernel that configures itself (`ip=dhcp`, built here in 5 minutes); all ports in a guest. Needs root."""
    session.install(".[test]")
    session.run("pytest", "-p", "no:cacheprovider", *(session.posargs or ["tests/kernel"]))


@nox.session
def docs(session: nox.Session) -> None:
    """Documentation: links lead somewhere, scripts parse, the next changelog can be written."""
    broken = [
        f"{page.relative_to(ROOT)}: {target}"
        for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("contrib/**/*.md")]
        for target in _local_links(page.read_text(encoding="utf-8"))
        if not (page.parent / target).exists()
    ]
    if broken:
        session.error("links that lead nowhere:\n  " + "\n  ".join(broken))
    for script in ("docs/demo.sh", "tests/run.sh", ".ci/run"):
        session.run("sh", "-n", script, external=True)
    session.install("towncrier>=23.11", ".")
    session.run("towncrier", "build", "--draft", "--version", "next")


def _local_links(markdown: str) -> list[str]:
    """Targets of inline links that are files of this repository: no fragment, no code blocks, no URLs."""
    prose = re.sub(r"^```.*?^```", "", markdown, flags=re.DOTALL | re.MULTILINE)
    prose = re.sub(r"`[^`\n]*`", "", prose)
    targets = [target.partition("#")[0] for target in re.findall(r"\]\(<?([^)\s>]+)>?[^)]*\)", prose)]
    return [target for target in targets if target and not re.match(r"[a-z][a-z0-9+.-]*:", target)]
