"""Another thread that wakes the loop."""

from contenders import run

from workloads import Workload


def measure(contender, value, options):
    found = run(contender, options.server_cores, "wakeups", options.seconds)
    return {"CPU µs/wake-up": found["cpu_seconds"] * 1e6, "wake-ups/s": found["per_second"]}


WORKLOADS = [
    Workload(
        "wakeups",
        "wake-ups from another thread, each answered before the next",
        "CPU time of both threads, on one processor; the answer is a semaphore's. There is no\n"
        "client. In Python it includes handing the interpreter's lock over twice.",
        measure,
    )
]
