"""Arrows go one way: what each part of the package may import, read from the syntax tree of every file.

Imports inside functions and for type checkers only count like all others: they too say who knows whom.
"""

import ast
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from attrs import frozen

import trio_passt

PACKAGE = Path(trio_passt.__file__).parent

LAYERS = (
    {"__main__"},
    {"slirp4netns"},
    {"cli"},
    {"daemon"},
    {"namespace_guest"},
    {"guests"},
    {"status"},
    {"dispatch"},
    {"responder"},
    {"tcp", "udp", "icmp", "local", "namespace", "services"},
    {"flow"},
    {"host"},
    {"wire"},
)
"""Each may import whatever is further down; those of one layer are strangers to each other."""

COMMON = {"config", "errors"}
"""Import nothing of the package; everybody may import them."""

LINK_IMPORTS = {"wire"}
LINK_IMPORTERS = {"__main__", "cli", "daemon", "guests", "namespace_guest"}

PURE_FOLDERS = ("wire", "services")
PURE_TCP_FILES = (
    "seq",
    "closing",
    "handshake",
    "from_guest",
    "to_guest",
    "opening",
    "keepalive",
    "riding",
    "rtt",
    "states",
    "timeouts",
)
WORLD = {
    *("trio", "socket", "time", "asyncio", "datetime", "fcntl", "io", "multiprocessing", "os", "random", "resource"),
    *("secrets", "select", "selectors", "shutil", "signal", "subprocess", "sys", "tempfile", "termios", "threading"),
    *("uuid", "ssl", "ctypes"),
}
"""Modules through which the outside world comes in: what a pure file must not import."""


@frozen
class Import:
    """`importer` imports `module`; both as dotted names, absolute."""

    importer: str
    module: str
    line: int

    def __str__(self) -> str:
        return f"{self.importer}, line {self.line}: imports {self.module}"


def files_of(package: Path) -> dict[str, Path]:
    """Every source file by its dotted name."""
    return {_dotted(package, path): path for path in sorted(package.rglob("*.py"))}


def imports_of(package: Path) -> list[Import]:
    """Every import in every file, wherever in the file it stands."""
    files = files_of(package)
    return [found for name, path in files.items() for found in _imports_in(name, path, files.keys())]


def _dotted(package: Path, path: Path) -> str:
    parts = path.relative_to(package.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imports_in(importer: str, path: Path, modules: Iterable[str]) -> Iterator[Import]:
    known = set(modules)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(importer, alias.name, node.lineno)
        elif isinstance(node, ast.ImportFrom):
            origin = _origin(importer, path, node)
            for alias in node.names:
                submodule = f"{origin}.{alias.name}"
                yield Import(importer, submodule if submodule in known else origin, node.lineno)


def _origin(importer: str, path: Path, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    parents = importer.split(".")
    up = node.level - (path.name == "__init__.py")
    base = parents[: len(parents) - up]
    return ".".join([*base, node.module] if node.module else base)


def part_of(module: str, package: str) -> str | None:
    """The top-level part of the package that `module` is in: "" is the package itself, `None` somewhere else."""
    top, _, rest = module.partition(".")
    return rest.partition(".")[0] if top == package else None


def wrong_arrows(package: Path) -> list[str]:
    """What is imported against the direction, and what has no place in the picture."""
    name = package.name
    parts = {part_of(module, name) for module in files_of(package)}
    strangers = parts - set().union(*LAYERS, COMMON, {"link", ""})
    wrong = [f"{part} is in no layer" for part in sorted(filter(None, strangers))]
    for found in imports_of(package):
        importer, imported = part_of(found.importer, name), part_of(found.module, name)
        if imported is None or importer is None or importer in strangers:
            continue
        if not _may_import(importer, imported):
            wrong.append(str(found))
    return wrong


def _may_import(importer: str, imported: str) -> bool:
    if importer in COMMON or importer == "":
        return False
    if imported == importer or imported in COMMON or imported == "":
        return True
    if importer == "link":
        return imported in LINK_IMPORTS
    if imported == "link":
        return importer in LINK_IMPORTERS
    return _depth(importer) < _depth(imported)


def _depth(part: str) -> int:
    return next((depth for depth, layer in enumerate(LAYERS) if part in layer), -1)


def pure_modules(package: Path) -> list[str]:
    """The dotted names of all files that are pure."""
    folders = {name for name in files_of(package) if part_of(name, package.name) in PURE_FOLDERS}
    return sorted(folders | {f"{package.name}.tcp.{file}" for file in PURE_TCP_FILES})


def impurities(package: Path) -> list[str]:
    """What pure files import of the outside world, by themselves or by what they import of the package."""
    by_importer: dict[str, list[Import]] = {name: [] for name in files_of(package)}
    for found in imports_of(package):
        by_importer[found.importer].append(found)
    wrong = []
    for pure in pure_modules(package):
        if pure not in by_importer:
            wrong.append(f"{pure} does not exist")
            continue
        reached, ahead = {pure}, [pure]
        while ahead:
            for found in by_importer[ahead.pop()]:
                if found.module.partition(".")[0] in WORLD:
                    wrong.append(str(found) if found.importer == pure else f"{pure} reaches {found}")
                if found.module in by_importer and found.module not in reached:
                    reached.add(found.module)
                    ahead.append(found.module)
    return wrong


def test_arrows_go_one_way() -> None:
    assert wrong_arrows(PACKAGE) == []


def test_pure_files_know_nothing_of_the_world() -> None:
    assert impurities(PACKAGE) == []


def test_all_of_the_package_was_looked_at() -> None:
    found = imports_of(PACKAGE)
    assert {"dispatch", "cli", "tcp", "flow", "host", "link"} <= {part_of(one.importer, "trio_passt") for one in found}
    assert any(one.module == "trio_passt.wire.tcp" and one.importer == "trio_passt.dispatch" for one in found)
    assert len(pure_modules(PACKAGE)) > 20


# -- the checker itself, on packages that are made up ------------------------------------------------------------------


def made_up(folder: Path, files: dict[str, str]) -> Path:
    package = folder / "made_up"
    for name, text in ({"__init__.py": ""} | files).items():
        path = package / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return package


BAD = {
    "upwards": ("wire/tcp.py", "from made_up.host import sockets\n"),
    "to a sibling": ("udp/flow.py", "import made_up.tcp.flow\n"),
    "in a function": ("flow/key.py", "def late() -> None:\n    from made_up.daemon import run\n"),
    "for type checkers only": (
        "host/queue.py",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from made_up.flow.key import FlowKey\n",
    ),
    "of a part from the package": ("host/queue.py", "from made_up import flow\n"),
    "relative": ("services/arp.py", "from ..dispatch import Dispatcher\n"),
    "relative, of a part": ("services/arp.py", "from .. import dispatch\n"),
    "relative, in a package's own file": ("services/__init__.py", "from ..dispatch import Dispatcher\n"),
    "a flow imports a link": ("udp/flow.py", "from made_up.link.base import Link\n"),
    "dispatch imports a link": ("dispatch.py", "from made_up.link.base import Link\n"),
    "a link imports more than wire": ("link/stream.py", "from made_up.host.readiness import Readiness\n"),
    "config imports": ("config.py", "from made_up.errors import StartupError\n"),
    "the package imports": ("__init__.py", "from made_up.wire import tcp\n"),
    "in the middle of a line of others": ("wire/ip.py", "import struct, made_up.daemon as d, enum\n"),
}

PARTS = {
    **{f"{part}/__init__.py": "" for part in ("wire", "host", "flow", "tcp", "udp", "services", "link")},
    "dispatch.py": "",
    "daemon.py": "",
}


@pytest.mark.parametrize("case", BAD)
def test_wrong_arrow_is_found(case: str, tmp_path: Path) -> None:
    name, text = BAD[case]
    (wrong,) = wrong_arrows(made_up(tmp_path, PARTS | {name: text}))
    assert wrong.startswith(
        "made_up" if name == "__init__.py" else f"made_up.{name.partition('/')[0].partition('.')[0]}"
    )


def test_right_arrows_are_left_alone(tmp_path: Path) -> None:
    package = made_up(
        tmp_path,
        {
            "__main__.py": "from made_up.cli.main import main\n",
            "cli/main.py": "from made_up import __version__, daemon, link\nfrom made_up.config import Config\n",
            "daemon.py": "from made_up.dispatch import Dispatcher\nfrom made_up.link import base\n",
            "dispatch.py": "from made_up import tcp, udp, services\nimport trio\n",
            "tcp/flow.py": "from . import seq\nfrom .seq import add\nfrom ..flow.key import FlowKey\nimport trio\n",
            "tcp/seq.py": "",
            "udp/flow.py": "from made_up.wire import udp\nfrom made_up.host import sockets\n",
            "services/arp.py": "from made_up.services import host_side\nfrom made_up.wire import arp\n",
            "flow/key.py": "from made_up.host.endpoint import Endpoint\n",
            "host/endpoint.py": "from made_up.errors import StartupError\nimport socket\n",
            "link/base.py": "from made_up.wire import frames\nfrom made_up.config import Config\nimport trio\n",
            "wire/udp.py": "from made_up.wire import checksum\nfrom . import checksum as same\nimport struct\n",
            "config.py": "from attrs import frozen\n",
            "errors.py": "",
        },
    )
    assert wrong_arrows(package) == []


@pytest.mark.parametrize("name", ["quic/flow.py", "helpers.py"])
def test_part_in_no_layer_is_found(name: str, tmp_path: Path) -> None:
    package = made_up(tmp_path, {name: "from made_up.daemon import run\n"})
    part = name.partition("/")[0].removesuffix(".py")
    assert wrong_arrows(package) == [f"{part} is in no layer"]


PURE_TCP = {f"tcp/{name}.py": "" for name in PURE_TCP_FILES}

IMPURE = {
    "at the top": ({"wire/tcp.py": "import socket\n"}, "made_up.wire.tcp, line 1: imports socket"),
    "of a name": ({"services/arp.py": "\nfrom time import monotonic\n"}, "made_up.services.arp, line 2: imports time"),
    "of a submodule": ({"wire/tcp.py": "import os.path\n"}, "made_up.wire.tcp, line 1: imports os.path"),
    "in a method": (
        {"tcp/rtt.py": "class A:\n    def b(self):\n        import trio\n"},
        "made_up.tcp.rtt, line 3: imports trio",
    ),
    "by way of another": (
        {"tcp/seq.py": "from made_up.flow import key\n", "flow/key.py": "import random\n"},
        "made_up.tcp.seq reaches made_up.flow.key, line 1: imports random",
    ),
}


@pytest.mark.parametrize("case", IMPURE)
def test_impurity_is_found(case: str, tmp_path: Path) -> None:
    files, complaint = IMPURE[case]
    assert impurities(made_up(tmp_path, PARTS | PURE_TCP | files)) == [complaint]


def test_pure_file_that_is_gone_is_missed(tmp_path: Path) -> None:
    files = {name: text for name, text in PURE_TCP.items() if name != "tcp/rtt.py"}
    assert impurities(made_up(tmp_path, files)) == ["made_up.tcp.rtt does not exist"]


def test_flows_may_know_the_world(tmp_path: Path) -> None:
    files = {"tcp/flow.py": "import trio, socket, time\n", "tcp/seq.py": "import struct, hashlib\n"}
    assert impurities(made_up(tmp_path, PURE_TCP | files)) == []
