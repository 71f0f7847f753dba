"""What bench/compare.py does to each program: one module a topic, a function a workload.

The function is called with a contender, the value of a case and the options, and returns figures
by name, of which the first is the one to compare. Its docstring is what is printed above the
table: the title, which may name options, and which figure to trust and what limits the others.
There is a table for each case. A program that cannot do a thing says so, and is skipped.
"""

import importlib
import inspect
from typing import Any, Callable, NamedTuple


class Case(NamedTuple):
    """One way of running a workload."""

    title: str = ""
    value: Any = None


class Workload(NamedTuple):
    """What is done to each program, and which figures come of it."""

    name: str
    title: str
    note: str
    measure: Callable
    cases: Callable  # of the options
    once: bool  # one round is enough
    curve: str  # what the cases' values are, if they make a curve
    references: tuple  # what the ratios are to


WORKLOADS = []

# What the ratios are to. PyPy's asyncio is what a loop on PyPy is measured by.
REFERENCES = ("c", "uvloop", "asyncio", "pypy-asyncio")


def workload(*, cases=lambda options: [Case()], once=False, curve="", references=REFERENCES):
    """Make a workload of a function."""

    def register(measure):
        name = measure.__name__.replace("_", "-")
        title, _, note = inspect.getdoc(measure).partition("\n\n")
        title = title.rstrip(".")
        WORKLOADS.append(Workload(name, title, note, measure, cases, once, curve, references))
        return measure

    return register


def points(*counts):
    """The cases of a curve."""
    return lambda options: [Case(f"{count:,}", count) for count in counts if count <= options.most]


def all_workloads():
    """Every workload, in the order of the tables: the curves come last."""
    for topic in ("network", "memory", "alone", "aio", "tls"):
        importlib.import_module(f"workloads.{topic}")
    return sorted(WORKLOADS, key=lambda workload: bool(workload.curve))
