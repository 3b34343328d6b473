"""The program as a module: it is one file without a suffix, and part of no package."""

import sys
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from typing import Any

PROGRAM = Path(__file__).parents[3] / "contrib/qrap/qrap"


def _load() -> Any:
    spec = spec_from_loader("qrap_program", SourceFileLoader("qrap_program", str(PROGRAM)))
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    writes, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        spec.loader.exec_module(module)
    finally:
        sys.dont_write_bytecode = writes
    return module


qrap = _load()
