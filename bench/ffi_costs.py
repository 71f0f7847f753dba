"""From a profile, and the calibration, to what the FFI costs."""

import pstats
from collections import Counter, defaultdict
from typing import NamedTuple

from common import KIB
from ffi_calibration import COUNTS

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


def crossing(name, calls, cost, in_c=None):
    """One function of C's, or another way of crossing: what it took in all, in seconds of CPU.

    `in_c` is what was spent on the other side.
    """
    return {"name": name, "calls": calls, "cost": cost, "in_c": in_c}


def costs(requests, parts, crossings, *, plain=None, profiled=False, computed=False):
    """Where the time of some requests went, in seconds of CPU, as --json has it.

    `requests` are 0 if their number is not known. `plain` is the run that nothing watched: the
    loop's own counter there says how many crossings a request took. Of a profiled run its CPU time
    is what the sum is compared with, `measured`, and of it that in the kernel, `system`.
    """
    total = sum(parts.values())
    measured = system = None
    if plain and profiled:
        measured, system = (
            seconds * requests / plain.requests for seconds in (plain.cpu, plain.system)
        )
    return {
        "requests": requests,
        "parts": parts,
        "shares": {name: seconds / total for name, seconds in parts.items()},
        "total": total,
        "crossings": [
            {**row, "share": row["cost"] / total}
            for row in sorted(crossings, key=lambda row: -row["cost"])
        ],
        "measured": measured,
        "system": system,
        "residual": None if measured is None else total / measured - 1,
        "counted": plain and plain.stats.crossings / plain.requests,
        "computed": computed,
    }


def read_profile(path):
    """Return what a file of cProfile's holds. Raises ValueError or OSError in words of one line."""
    try:
        return pstats.Stats(str(path)).stats
    except OSError:
        raise
    except Exception:  # whatever marshal, and pstats on something odd, may raise
        raise ValueError(f"{path} is not a file that cProfile has written") from None


def analyze_profile(profile, calibration, *, observed=None, plain=None, cpu=None):
    """Return the costs that a profile shows.

    It is of a run that was observed, and then repeated with no profiler (`plain`); or of a
    program that used so much CPU, if that is known.
    """
    package, roots = find_loop(profile)

    def part(function, caller=None):
        file, _, name = function
        if file != "~":
            return PYASYNC if file.startswith(package) else APPLICATION
        if name.startswith(CROSSING) or CFFI in name:
            return name
        return part(caller) if caller and caller[0] != "~" else APPLICATION

    # The profiler's own time is in the caller's, and to a lesser degree in the function's.
    own_time, overhead, calls = defaultdict(float), defaultdict(float), Counter()
    own_time[PYASYNC] += sum(profile[root][2] for root in roots)
    for caller, function, count, seconds in calls_within(profile, roots):
        callee = part(function, caller)
        in_caller, in_callee = calibration["profiler"]["c" if function[0] == "~" else "python"]
        own_time[callee] += seconds
        calls[callee] += count
        overhead[callee] += count * in_callee / 1e9
        overhead[part(caller)] += count * in_caller / 1e9

    # cProfile's clock goes on while the loop sleeps, and while others have the processor.
    busy, asleep = 1.0, 0.0
    if observed:
        asleep = observed.stats.idle_time
        busy = observed.cpu / (sum(own_time.values()) - asleep)
    elif cpu is not None:
        asleep = max(0.0, sum(entry[2] for entry in profile.values()) - cpu)
    own_time[RUN] = max(0.0, own_time[RUN] - asleep)
    cpu_time = Counter({name: time * busy - overhead[name] for name, time in own_time.items()})

    rows, in_c = rows_inward(observed, calibration) if observed else [], 0.0
    inward = sum(row["cost"] for row in rows)
    for name, count in calls.items():
        if name.startswith(CROSSING):
            function = name[len(CROSSING) : -1]
            cost = count * cost_by_name(calibration, function)
            in_c += cpu_time[name] - cost
            rows.append(crossing(function, count, cost, max(0.0, cpu_time[name] - cost)))
        elif CFFI in name:
            rows.append(crossing(f"ffi.{name.split(chr(39))[1]}", count, cpu_time[name]))
    parts = {
        SLEEP if observed is None and cpu is None else KERNEL: in_c,
        FFI: sum(row["cost"] for row in rows),
        PYASYNC: cpu_time[PYASYNC] - inward,
        APPLICATION: cpu_time[APPLICATION],
    }
    return costs(observed.requests if observed else 0, parts, rows, plain=plain, profiled=True)


def analyze_run(watched, plain, calibration):
    """Return the costs that two runs show: one that was watched, and one that was not.

    Where no profiler helps they are counts, times what each costs.
    """
    if not watched.counts:
        return analyze_profile(watched.profile, calibration, observed=watched, plain=plain)
    scale = plain.requests / watched.requests
    rows = rows_inward(plain, calibration)
    for name, count in watched.counts.items():
        cost = count * scale * cost_by_name(calibration, name)
        rows.append(crossing(name, round(count * scale), cost))
    crossings = sum(row["cost"] for row in rows)
    parts = {KERNEL_ALONE: plain.system, FFI: crossings, REST: plain.user - crossings}
    # The sum is what was measured: there is no second figure to compare it with.
    return costs(plain.requests, parts, rows, plain=plain)


def with_callbacks(found, calibration):
    """Return what it would cost if C called Python for each event, with all else as it is."""
    rows = [
        crossing(CALLS_IN, row["calls"], row["calls"] * calibration["call_in"] / 1e9)
        if row["name"] == RECORDS
        else row
        for row in found["crossings"]
    ]
    parts = {**found["parts"], FFI: sum(row["cost"] for row in rows)}
    return costs(found["requests"], parts, rows, computed=True)


def rows_inward(observed, calibration):
    """What it costs that events come as records, and that each request is read once."""
    requests, events = observed.requests, observed.stats.events
    size = observed.stats.bytes_read / requests
    copy = calibration["copy"] + (calibration["copy_1k"] - calibration["copy"]) * size / KIB
    return [
        crossing(RECORDS, events, events * calibration["record"] / 1e9),
        crossing(COPIES, requests, requests * copy / 1e9),
    ]


def cost_by_name(calibration, function):
    """What a call of a function of the extension's costs, in seconds: by how many arguments."""
    try:
        arguments = len(ffi.typeof(getattr(lib, function)).args)
    except AttributeError:  # a profile of another version
        arguments = 3
    return calibration["call_out"][min(arguments, COUNTS[-1])] / 1e9


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
    """Yield (caller, function, calls, own time) of all calls under `roots`."""
    callees = defaultdict(list)
    for function, (_, _, _, _, callers) in profile.items():
        for caller, (calls, _, seconds, _) in callers.items():
            callees[caller].append((function, calls, seconds))
    reached, ahead = set(roots), list(roots)
    while ahead:
        caller = ahead.pop()
        for function, calls, seconds in callees[caller]:
            yield caller, function, calls, seconds
            if function not in reached:
                reached.add(function)
                ahead.append(function)
