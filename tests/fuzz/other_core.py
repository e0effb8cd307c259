"""An extension in the place of the package's own, before that is imported."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys


def load_core(path: str) -> None:
    """Puts an extension in the place of the package's own, before that is imported."""
    name = "noisyflow._core"
    loader = importlib.machinery.ExtensionFileLoader(name, path)
    spec = importlib.util.spec_from_file_location(name, path, loader=loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    sys.modules[name] = module
