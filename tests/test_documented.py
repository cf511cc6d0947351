"""Every public name says what it is, and the examples in docstrings are true."""

import doctest
import importlib
import inspect
import pkgutil
from pathlib import Path

import pytest

import nas_moreau

ROOT = Path(nas_moreau.__file__).parent
WITH_EXAMPLES = [
    ".".join(path.relative_to(ROOT.parent).with_suffix("").parts)
    for path in sorted(ROOT.rglob("*.py"))
    if ">>> " in path.read_text(encoding="utf-8")
]
PACKAGES = ["nas_moreau", *(f"nas_moreau.{m.name}" for m in pkgutil.iter_modules([str(ROOT)]) if m.ispkg)]
PROMISED = [
    (package, name)
    for package in PACKAGES
    for name in getattr(importlib.import_module(package), "__all__", ())
    if name not in ("METHODS", "__version__")  # plain data
]


@pytest.mark.parametrize("module", WITH_EXAMPLES)
def test_examples_are_true(module, registrations_forgotten):
    with registrations_forgotten():
        assert doctest.testmod(importlib.import_module(module)).failed == 0


def test_the_solver_and_the_genotype_have_examples():
    assert sum(module.startswith("nas_moreau.bilevel.") for module in WITH_EXAMPLES) >= 4
    assert "nas_moreau.architecture.spaces.genotype" in WITH_EXAMPLES


@pytest.mark.parametrize("package, name", PROMISED)
def test_a_promised_name_says_what_it_is(package, name):
    """ruff asks for a docstring of every function; what packages promise also names its arguments and errors."""
    promised = getattr(importlib.import_module(package), name)
    text = inspect.getdoc(promised)
    assert text and "." in text
    if inspect.isfunction(promised) and len(inspect.signature(promised).parameters) > 1:
        missing = [p for p in inspect.signature(promised).parameters if p not in text]
        assert not missing, f"{package}.{name} says nothing of {missing}"
