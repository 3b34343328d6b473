"""A guest with the program in it: the Python that runs the tests, and what trio-passt imports, each where it is here.

Which files that takes is asked of a process that has imported them: its modules, and the libraries in its memory map.
Modules come compiled, in files that Python does not compare with their sources: to compile them would take most of a
slow guest's time.

`python3 -m tests.guest.interpreter` builds it, and prints the paths of the kernel and of the initramfs.
"""

from __future__ import annotations

import json
import py_compile
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from tests.guest import image
from tests.guest.cpio import CpioWriter

ASK = """
import json, sys
import pyroute2
import trio_passt.cli.main, trio_passt.cli.log, trio_passt.daemon, trio_passt.host.discovery, trio_passt.host.watch
with open("/proc/self/maps") as maps:
    mapped = {line.split()[5] for line in maps if ".so" in line}
files = {getattr(module, "__file__", None) for module in list(sys.modules.values())}
json.dump([sorted(mapped), sorted(filter(None, files))], sys.stdout)
"""
PROGRAM = "usr/bin/trio-passt"
SITES = {"site-packages", "dist-packages"}
LEFT_OUT = {"__pycache__", "test", "tests", "idlelib", "ensurepip", "tkinter", "lib2to3", "turtledemo", "pydoc_data"}


def with_program(base: image.Image, directory: Path) -> image.Image:
    """The guest's image with a second archive behind its own; in the guest there is `trio-passt` then."""
    answer = subprocess.run([sys.executable, "-c", ASK], stdout=subprocess.PIPE, check=True).stdout
    mapped, files = json.loads(answer)
    loaded = {Path(name).resolve() for name in files}
    interpreter = Path(sys.executable).resolve()
    standard = Path(sysconfig.get_path("stdlib"))
    packages = _packages(loaded, standard)
    initramfs = directory / "initramfs-with-program"
    with initramfs.open("wb") as file:
        with base.initramfs.open("rb") as before:
            shutil.copyfileobj(before, file)
        archive = CpioWriter(file)
        archive.add_file(str(interpreter), interpreter.read_bytes(), 0o755)
        archive.add_symlink("usr/bin/python3", str(interpreter))
        for library in map(Path, mapped):
            archive.add_file(str(library), library.read_bytes(), 0o755)
            for name in library.parent.glob(f"{library.name.partition('.so')[0]}.so*"):
                if name.is_symlink() and name.resolve() == library:
                    archive.add_symlink(str(name), library.name)
        _add_tree(archive, standard, loaded, LEFT_OUT | SITES)
        for package in packages:
            _add_tree(archive, package, loaded, LEFT_OUT)
        path = ":".join(sorted({str(package.parent) for package in packages}))
        script = f'#!/bin/sh\nPYTHONPATH={path} exec {interpreter} -m trio_passt "$@"\n'
        archive.add_file(PROGRAM, script.encode(), 0o755)
        archive.close()
    return image.Image(base.kernel, initramfs)


def _packages(loaded: set[Path], standard: Path) -> list[Path]:
    """What is imported besides the standard library: packages, and modules without one."""
    found = set()
    for file in loaded:
        if standard not in file.parents or SITES.intersection(file.parts):
            package = file
            while (package.parent / "__init__.py").exists():
                package = package.parent
            found.add(package)
    return sorted(found)


def _add_tree(archive: CpioWriter, source: Path, loaded: set[Path], leave_out: set[str]) -> None:
    """All files, but those below directories of these names; what is loaded is compiled."""
    with tempfile.TemporaryDirectory() as temporary:
        compiled = Path(temporary, "module.pyc")
        for path in sorted(source.rglob("*")) if source.is_dir() else [source]:
            if not path.is_file() or leave_out.intersection(path.relative_to(source).parts):
                continue
            archive.add_file(str(path), path.read_bytes(), 0o755 if ".so" in path.name else 0o644)
            if path.suffix == ".py" and path.resolve() in loaded:
                mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
                py_compile.compile(str(path), str(compiled), invalidation_mode=mode)
                name = f"{path.stem}.{sys.implementation.cache_tag}.pyc"
                archive.add_file(str(path.parent / "__pycache__" / name), compiled.read_bytes())


if __name__ == "__main__":
    made = with_program(image.build(), image.work_directory())
    print(made.kernel)
    print(made.initramfs)
