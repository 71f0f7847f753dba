"""What bench/compare.py does to each program: one module a topic.

A workload has cases, one table for each, and the first of its figures is the one to compare.
"""

from typing import Any, Callable, NamedTuple


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
    contenders: Callable = lambda contender: contender.name != "bare"  # whether it is meant for one
    once: bool = False  # one round is enough
    curve: str = ""  # what the cases' x is, if they make a curve
    references: tuple = ("c", "uvloop")  # what the ratios are to


def all_workloads():
    """Every workload, in the order of the tables."""
    from workloads import connections, echo, http, memory, scale, timers, tls, udp, wakeups

    modules = (http, memory, echo, timers, connections, wakeups, udp, tls, scale)
    return [workload for module in modules for workload in module.WORKLOADS]
