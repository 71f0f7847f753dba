"""A million timers."""

from contenders import run

from workloads import Workload


def measure_fire(contender, value, options):
    return fire(contender, options.timers, options)


def fire(contender, count, options):
    found = run(contender, options.server_cores, "timers", "fire", count, options.spread)
    return {"CPU µs/timer": found["cpu_seconds"] * 1e6}


def measure_cancel(contender, value, options):
    words = ("cancel", options.timers, options.spread)
    found = run(contender, options.server_cores, "timers", *words)
    return {"CPU µs/timer": found["cpu_seconds"] * 1e6}


def measure_pending(contender, value, options):
    words = ("pending", options.timers, options.spread)
    found = run(contender, options.server_cores, "timers", *words)
    return {"bytes/timer": found["bytes"]}


NO_CLIENT = "The program measures itself; there is no client."

WORKLOADS = [
    Workload(
        "timers",
        "create {timers:,} timers, due over {spread:g} s, and fire them",
        f"CPU time of the process. {NO_CLIENT}",
        measure_fire,
    ),
    Workload(
        "cancel",
        "create {timers:,} timers and cancel them",
        f"CPU time of the process. {NO_CLIENT}",
        measure_cancel,
    ),
    Workload(
        "pending",
        "{timers:,} timers pending",
        "Private memory of each, beyond its callback, which all share, and the application's\n"
        "reference to it.",
        measure_pending,
    ),
]
