"""What bench/compare.py does to each program: one module a topic.

A workload has cases, one table for each, and the first of its figures is the one to compare.
A program that cannot do what a workload asks for is skipped: it says so itself.
"""

from typing import Any, Callable, NamedTuple

KIB, MIB = 1 << 10, 1 << 20


class Case(NamedTuple):
    """One way of running a workload."""

    title: str
    value: Any = None
    x: float = 0.0  # its place on a curve, for cases that make one


class Workload(NamedTuple):
    """What is done to each program, and which figures come of it."""

    name: str
    title: str
    note: str  # which figure to trust, and what limits the others
    measure: Callable  # (contender, value of the case, options) -> figures by name
    cases: Callable = lambda options: [Case("")]
    once: bool = False  # one round is enough
    curve: str = ""  # what the cases' x is, if they make a curve
    references: tuple = ("c", "uvloop")  # what the ratios are to


def points(*counts):
    """The cases of a curve."""
    return lambda options: [
        Case(f"{count:,}", count, count) for count in counts if count <= options.most
    ]


def all_workloads():
    """Every workload, in the order of the tables: the curves come last."""
    from workloads import alone, memory, network, tls

    modules = (network, memory, alone, tls)
    found = [workload for module in modules for workload in module.WORKLOADS]
    return sorted(found, key=lambda workload: bool(workload.curve))
