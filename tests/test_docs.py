"""The examples in the docstrings run, and print what they say."""

import doctest
import importlib
import pkgutil

import pytest

import pyasync

MODULES = ["pyasync"] + [
    f"pyasync.{module.name}"
    for module in pkgutil.iter_modules(pyasync.__path__)
    if module.name not in ("_libuv", "__main__")
]


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module_print_what_they_say(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_there_are_examples():
    finder = doctest.DocTestFinder()
    examples = [
        example
        for name in MODULES
        for test in finder.find(importlib.import_module(name))
        for example in test.examples
    ]
    assert len(examples) > 10
