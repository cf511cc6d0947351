"""The examples in the solver's docstrings are true."""

import doctest
import importlib
import pkgutil

import pytest

import nas_moreau.bilevel

MODULES = [module.name for module in pkgutil.iter_modules(nas_moreau.bilevel.__path__)]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    module = importlib.import_module(f"nas_moreau.bilevel.{name}")
    assert doctest.testmod(module).failed == 0


def test_there_are_examples():
    found = [doctest.DocTestFinder().find(importlib.import_module(f"nas_moreau.bilevel.{name}")) for name in MODULES]
    assert sum(len(test.examples) for tests in found for test in tests) >= 5
