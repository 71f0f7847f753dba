"""From a profile, and the calibration, to what the FFI costs."""

import pstats
from collections import Counter, defaultdict
from dataclasses import asdict, dataclass, field, replace
from typing import NamedTuple, Optional

from ffi_calibration import KIB, call_cost

import pyasync
from pyasync._ffi import ffi, lib

CROSSING = "<built-in method pyasync._libuv."
RUN = f"{CROSSING}pa_run>"  # sleeps, too
CFFI = "_cffi_backend"
PACKAGE = "/pyasync/"

KERNEL, FFI, PYASYNC, APPLICATION = "kernel and libuv", "FFI crossings", "pyasync", "application"
SLEEP = "sleep, kernel, libuv"
KERNEL_ALONE, REST = "kernel", "libuv and Python"  # where no profiler tells more
RECORDS, CALLS_IN, COPIES = "event records, in", 'extern "Python" calls, in', "data read, copied"


class Observation(NamedTuple):
    """What a run has cost, from the time when the load was started."""

    requests: int
    user: float  # CPU seconds
    system: float
    stats: pyasync.Stats
    counts: Counter  # crossings by name, of a counted run
    profile: dict  # of a profiled one, as cProfile has it

    @property
    def cpu(self):
        return self.user + self.system


class Crossing(NamedTuple):
    """One function of C's, or another way of crossing."""

    name: str
    calls: int
    cost: float  # seconds of CPU that crossing took, in all
    in_c: Optional[float] = None  # and that was spent on the other side


@dataclass(eq=False)  # each is itself alone
class Costs:
    """Where the time of some requests went, in seconds of CPU."""

    requests: int  # 0: unknown
    parts: dict
    crossings: list
    measured: Optional[float] = None  # the CPU time without a profiler, by the kernel's accounting
    system: Optional[float] = None  # of it, that in the kernel
    counted: Optional[float] = None  # calls into C for a request then, by the loop's counter
    computed: bool = False
    total: float = field(init=False)

    def __post_init__(self):
        self.total = sum(self.parts.values())
        self.crossings = sorted(self.crossings, key=lambda row: -row.cost)

    @property
    def residual(self):
        """How much more the parts add up to than was measured, as a share of the latter."""
        return None if self.measured is None else self.total / self.measured - 1

    def as_dict(self):
        shares = {name: seconds / self.total for name, seconds in self.parts.items()}
        crossings = [{**row._asdict(), "share": row.cost / self.total} for row in self.crossings]
        return {**asdict(self), "crossings": crossings, "shares": shares, "residual": self.residual}


def read_profile(path):
    """Return what a file of cProfile's holds. Raises ValueError or OSError in words of one line."""
    try:
        return pstats.Stats(str(path)).stats
    except OSError:
        raise
    except Exception:  # whatever marshal, and pstats on something odd, may raise
        raise ValueError(f"{path} is not a file that cProfile has written") from None


def analyze_run(watched, plain, calibration):
    """Return the Costs that two runs show: one that was watched, and one that was not."""
    if watched.counts:
        return analyze_counts(watched, plain, calibration)
    scale = watched.requests / plain.requests
    return replace(
        analyze_profile(watched.profile, calibration, observed=watched),
        measured=plain.cpu * scale,
        system=plain.system * scale,
        counted=plain.stats.crossings / plain.requests,
    )


def analyze_profile(profile, calibration, *, observed=None, cpu=None):
    """Return the Costs that a profile shows, of a run that was observed, or used so much CPU."""
    package, roots = find_loop(profile)
    profiler = {
        kind: [cost / 1e9 for cost in pair] for kind, pair in calibration["profiler"].items()
    }

    def part(function, caller=None):
        file, _, name = function
        if file == "~":
            if name.startswith(CROSSING) or CFFI in name:
                return name
            return part(caller) if caller and caller[0] != "~" else APPLICATION
        return PYASYNC if file.startswith(package) else APPLICATION

    # The profiler's own time is in the caller's, and to a lesser degree in the function's.
    own_time, overhead, calls = defaultdict(float), defaultdict(float), defaultdict(int)
    own_time[PYASYNC] += sum(profile[root][2] for root in roots)
    for caller, function, count, seconds in calls_within(profile, roots):
        callee = part(function, caller)
        in_caller, in_callee = profiler["c" if function[0] == "~" else "python"]
        own_time[callee] += seconds
        calls[callee] += count
        overhead[callee] += count * in_callee
        overhead[part(caller)] += count * in_caller

    # cProfile's clock goes on while the loop sleeps, and while others have the processor.
    busy, asleep = 1.0, 0.0
    if observed:
        asleep = observed.stats.idle_time
        busy = observed.cpu / (sum(own_time.values()) - asleep)
    elif cpu is not None:
        asleep = max(0.0, sum(entry[2] for entry in profile.values()) - cpu)
    own_time[RUN] = max(0.0, own_time[RUN] - asleep)
    cpu_time = {name: time * busy - overhead[name] for name, time in own_time.items()}

    rows, in_c = rows_inward(observed, calibration) if observed else [], 0.0
    inward = sum(row.cost for row in rows)
    for name in calls:
        if name.startswith(CROSSING):
            function = name[len(CROSSING) : -1]
            cost = calls[name] * call_cost(calibration, argument_count(function)) / 1e9
            in_c += cpu_time[name] - cost
            rows.append(Crossing(function, calls[name], cost, max(0.0, cpu_time[name] - cost)))
        elif CFFI in name:
            rows.append(Crossing(f"ffi.{name.split(chr(39))[1]}", calls[name], cpu_time[name]))
    parts = {
        SLEEP if observed is None and cpu is None else KERNEL: in_c,
        FFI: sum(row.cost for row in rows),
        PYASYNC: cpu_time[PYASYNC] - inward,
        APPLICATION: cpu_time.get(APPLICATION, 0.0),
    }
    return Costs(observed.requests if observed else 0, parts, rows)


def analyze_counts(counted, plain, calibration):
    """Return what is known where no profiler helps: counts, times what each costs."""
    scale = plain.requests / counted.requests
    rows = rows_inward(plain, calibration)
    for name, count in counted.counts.items():
        cost = call_cost(calibration, argument_count(name)) / 1e9
        rows.append(Crossing(name, round(count * scale), count * scale * cost))
    crossing = sum(row.cost for row in rows)
    parts = {KERNEL_ALONE: plain.system, FFI: crossing, REST: plain.user - crossing}
    # The sum is what was measured: there is no second figure to compare it with.
    return Costs(plain.requests, parts, rows, counted=plain.stats.crossings / plain.requests)


def rows_inward(observed, calibration):
    """What it costs that events come as records, and that each request is read once."""
    requests, events = observed.requests, observed.stats.events
    size = observed.stats.bytes_read / requests
    copy = calibration["copy"] + (calibration["copy_1k"] - calibration["copy"]) * size / KIB
    return [
        Crossing(RECORDS, events, events * calibration["record"] / 1e9),
        Crossing(COPIES, requests, requests * copy / 1e9),
    ]


def with_callbacks(costs, calibration):
    """Return what it would cost if C called Python for each event, with all else as it is."""
    rows, more = [], 0.0
    for row in costs.crossings:
        if row.name == RECORDS:
            more = row.calls * calibration["call_in"] / 1e9 - row.cost
            row = Crossing(CALLS_IN, row.calls, row.cost + more)
        rows.append(row)
    parts = {**costs.parts, FFI: costs.parts[FFI] + more}
    return Costs(costs.requests, parts, rows, computed=True)


def argument_count(name):
    try:
        return len(ffi.typeof(getattr(lib, name)).args)
    except AttributeError:  # a profile of another version
        return 3


def find_loop(profile):
    """Return the package's folder, and the functions in it that run the loop.

    These are told by no name of theirs: the callers of pa_run, theirs in the package, and so on
    to those that are called from outside.
    """
    ahead = [key for function in profile if function[2] == RUN for key in profile[function][4]]
    files = [key[0].replace("\\", "/") for key in ahead]
    if not files or PACKAGE not in files[0]:
        raise ValueError("the profile is not of a program that has run pyasync's event loop")
    package = ahead[0][0][: files[0].rindex(PACKAGE) + len(PACKAGE)]
    roots, seen = set(), set(ahead)
    while ahead:
        function = ahead.pop()
        callers = {caller for caller in profile[function][4] if caller[0].startswith(package)}
        if not callers - {function}:
            roots.add(function)
        ahead += callers - seen
        seen |= callers
    return package, roots


def calls_within(profile, roots):
    """Return (caller, function, calls, own time) of all calls under `roots`."""
    callees = defaultdict(list)
    for function, (_, _, _, _, callers) in profile.items():
        for caller, (calls, _, seconds, _) in callers.items():
            callees[caller].append((caller, function, calls, seconds))
    found, reached, ahead = [], set(roots), list(roots)
    while ahead:
        for call in callees[ahead.pop()]:
            found.append(call)
            if call[1] not in reached:
                reached.add(call[1])
                ahead.append(call[1])
    return found
