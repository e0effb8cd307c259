"""Public names, light imports, and docstring examples that run."""

from __future__ import annotations

import doctest
import importlib
import importlib.util
import pkgutil
import subprocess
import sys
from types import ModuleType

import pytest

import noisyflow


def test_every_public_name_exists_and_is_documented() -> None:
    for name in noisyflow.__all__:
        assert getattr(noisyflow, name).__doc__, name


@pytest.mark.parametrize("heavy", ["torch", "matplotlib", "scipy", "safetensors"])
def test_importing_the_package_does_not_import(heavy: str) -> None:
    code = f"import sys, noisyflow; sys.exit({heavy!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_the_estimators_need_nothing_but_numpy_and_scipy() -> None:
    """With every optional package made impossible to import."""
    code = (
        "import sys\n"
        "class Missing:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name in ('torch', 'matplotlib', 'safetensors'):\n"
        "            raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Missing())\n"
        "import numpy as np, noisyflow\n"
        "x = np.random.default_rng(0).normal(size=(50, 4, 2))\n"
        "noisyflow.entropy(x[:, 0], 1.0)\n"
        "noisyflow.entropy(x.reshape(50, 8), 1.0)\n"
        "noisyflow.mutual_information(x, 1.0)\n"
        "from noisyflow import baselines, datasets, importance, tracking\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def modules() -> list[ModuleType]:
    apart = ["noisyflow._core", "noisyflow.__main__"]
    if importlib.util.find_spec("pytorch_lightning") is None:
        apart.append("noisyflow.lightning")
    names = ["noisyflow"] + [
        module.name
        for module in pkgutil.walk_packages(noisyflow.__path__, "noisyflow.")
        if module.name not in apart
    ]
    return [importlib.import_module(name) for name in names]


@pytest.mark.parametrize("module", modules(), ids=lambda module: module.__name__)
def test_docstring_examples_run(module: ModuleType) -> None:
    assert doctest.testmod(module).failed == 0
