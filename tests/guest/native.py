"""C programs of the tests, compiled where they run."""

from __future__ import annotations

import fcntl
import hashlib
import os
import subprocess
from pathlib import Path

from tests.guest.image import work_directory

COMPILER = ("gcc", "-std=gnu11", "-O2", "-pthread", "-Wall", "-Wextra", "-Werror")
VERSIONS_KEPT = 3


class CompilerError(Exception):
    """A program cannot be compiled; the text has the compiler's messages."""


def compiled(source: Path, cache: Path | None = None) -> Path:
    """The program made of one file, from the cache if this very text was compiled before. Raises `CompilerError`."""
    cache = cache or work_directory() / "native"
    cache.mkdir(parents=True, exist_ok=True)
    key = hashlib.sha256(repr(COMPILER).encode() + source.read_bytes()).hexdigest()[:16]
    program = cache / f"{source.stem}-{key}"
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not program.exists():
            _compile(source, program)
            versions = sorted(cache.glob(f"{source.stem}-*"), key=lambda path: path.stat().st_mtime, reverse=True)
            for old in versions[VERSIONS_KEPT:]:
                old.unlink()
    return program


def _compile(source: Path, program: Path) -> None:
    unfinished = program.with_name(f"unfinished-{os.getpid()}")
    command = [*COMPILER, "-o", str(unfinished), str(source)]
    try:
        result = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    except OSError as error:
        raise CompilerError(f"{source.name}: {error}") from error
    if result.returncode:
        raise CompilerError(f"{source.name}: {result.stderr.strip()}")
    unfinished.rename(program)
