"""What single crossings between Python and C cost here: the calibration of ffi_profile.py.

A small CFFI module with empty functions is compiled into build/ffi-calibration on first use, by
itself, so that the package carries nothing for the benchmarks. All figures are in nanoseconds,
each the lowest of several rounds: what disturbs a round only makes it slower.
"""

import cProfile
import hashlib
import importlib.util
import sys
from pathlib import Path
from struct import Struct
from time import perf_counter_ns
from timeit import Timer

from cffi import FFI
from common import BENCH

CACHE = BENCH.parent / "build" / "ffi-calibration"
PYPY = sys.implementation.name == "pypy"

ROUNDS = 15
REPEATS = 20_000  # in a round
KIB = 1024
RECORD = Struct("iiqq")  # pa_event

# The arguments are of the types that pyasync passes most.
PARAMETERS = {
    0: "void",
    1: "void *loop",
    2: "void *loop, int slot",
    3: "void *loop, int slot, int64_t value",
    4: "void *loop, int slot, int64_t value, const char *data",
    8: "void *loop, const int64_t *operations, int count, const char *payload, int slot,"
    " const char *data, size_t size, int callback",
}
# Functions to profile: as many as a program calls by turns, which the profiler looks up in a tree.
MANY = range(40)
EMPTY = {
    **{f"pa_empty{count}": parameters for count, parameters in PARAMETERS.items()},
    **{f"pa_one_of_many{i}": "void" for i in MANY},
}
CALLBACK = "void pa_called(int slot, int64_t value, int64_t data);"
DECLARATIONS = f'extern "Python" {CALLBACK}\nvoid pa_call_in(int times);\n' + "\n".join(
    f"void {name}({parameters});" for name, parameters in EMPTY.items()
)
# A compiler that sees through the functions would leave out the calls.
SOURCE = f"""
#include <stdint.h>
#include <stddef.h>
static {CALLBACK}
static void pa_call_in(int times) {{
  for (int i = 0; i < times; i++)
    pa_called(i & 63, i, i);
}}
""" + "\n".join(
    f'__attribute__((noinline)) static void {name}({parameters}) {{ __asm__(""); }}'
    for name, parameters in EMPTY.items()
)


def load_module():
    """Compile the module, unless that was done before, and import it."""
    text = DECLARATIONS + SOURCE + sys.version
    name = f"ffi_calibration_{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    path = next(CACHE.glob(f"{name}.*.so"), None)
    if path is None:
        builder = FFI()
        builder.cdef(DECLARATIONS)
        builder.set_source(name, SOURCE, extra_compile_args=["-O2"])
        path = Path(builder.compile(tmpdir=str(CACHE)))
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def calibrate():
    """Measure everything. Returns nanoseconds by name, and by number of arguments for calls."""
    module = load_module()
    ffi, lib = module.ffi, module.lib
    pointer, operations, data = ffi.new("char[8]"), ffi.new("int64_t[3]"), b"data"
    arguments = {
        **{count: (pointer, 1, 2, data)[:count] for count in range(5)},
        8: (pointer, operations, 1, data, 1, data, 4, 1),
    }
    calls = {
        count: call_time(getattr(lib, f"pa_empty{count}"), given)
        for count, given in arguments.items()
    }
    result = {"call_out": calls}
    result["call_in"], result["record"] = calibrate_events(ffi, lib)
    result["copy"], result["copy_1k"] = (copy_time(ffi, size) for size in (1, KIB))
    if not PYPY:
        result["profiler"] = calibrate_profiler(lib, calls[0])
    return result


def call_cost(calibration, arguments):
    """What a call out with so many arguments costs: measured, or between two that were."""
    calls = calibration["call_out"]
    if arguments in calls:
        return calls[arguments]
    few = max(count for count in calls if count <= min(arguments, 4))
    many = max(calls)
    return calls[few] + (calls[many] - calls[few]) / (many - few) * (arguments - few)


def time_each(statement, *, at_once=1, **names):
    """What a statement costs that does so many at once: for each, in a loop, its names local."""
    setup = "\n".join(f"{name} = given[{name!r}]" for name in names)
    timer = Timer(statement, setup, perf_counter_ns, {"given": names})
    return min(timer.repeat(ROUNDS, REPEATS // at_once)) / REPEATS


def call_time(call, arguments):
    """Return what one call in a loop costs more than the loop."""
    names = {f"argument{i}": value for i, value in enumerate(arguments)}
    called = time_each(f"call({', '.join(names)})", call=call, **names)
    return max(0.0, called - time_each("pass"))


class Target:
    """What a record, or a call in, is for."""

    __slots__ = ()

    def on_event(self, value, data):
        pass


WALK_RECORDS = """
for kind, slot, value, data in unpack(records):
    if kind == 1:
        pass
    elif kind == 4:
        objects[slot].on_event(value, data)
"""


def calibrate_events(ffi, lib):
    """How an event comes from C to the object that it is for, without what the call there costs.

    Returns the cost of a call in, and of a record of a queue, unpacked and dispatched.
    """
    objects = [Target() for _ in range(64)]

    @ffi.def_extern()
    def pa_called(slot, value, data):
        objects[slot].on_event(value, data)

    call = time_each("target.on_event(value, value)", target=objects[0], value=0)
    call_in = time_each("call_in(times)", at_once=REPEATS, call_in=lib.pa_call_in, times=REPEATS)
    records = memoryview(b"".join(RECORD.pack(4, i & 63, i, i) for i in range(REPEATS)))
    names = {"unpack": RECORD.iter_unpack, "records": records, "objects": objects}
    record = time_each(WALK_RECORDS, at_once=REPEATS, **names)
    return max(0.0, call_in - call), max(0.0, record - call)


def copy_time(ffi, size):
    """Return what one copy out of C's memory costs, as a read makes it."""
    names = {
        "arena": ffi.buffer(ffi.new("char[]", 64 * KIB)),
        "starts": [(i * 64, i * 64 + size) for i in range(500)],
    }
    copies, nothing = (
        time_each(f"for start, end in starts: {statement}", at_once=500, **names)
        for statement in ("arena[start:end]", "pass")
    )
    return max(0.0, copies - nothing)


def calibrate_profiler(lib, call_cost):
    """What cProfile adds to one call: to the caller's own time, and to the callee's.

    Returns these two by kind, for functions in Python and in C.
    """
    in_python = [eval("lambda: None") for _ in MANY]
    in_c = [getattr(lib, f"pa_one_of_many{i}") for i in MANY]
    result = {}
    for kind, functions, inside in (("python", in_python, 0.0), ("c", in_c, call_cost)):
        names = {"functions": functions, "at_once": len(functions)}
        plain = time_each("for function in functions: function()", **names)
        of_all, of_callees = (min(times) for times in zip(*map(profile, [functions] * ROUNDS)))
        in_callee = max(0.0, of_callees - inside)
        result[kind] = (max(0.0, of_all - plain - in_callee), in_callee)
    return result


def profile(functions):
    """Call functions by turns, profiled. Returns own times of a call: of all, and the callee's."""

    def call_by_turns():
        for _ in range(rounds):
            for function in functions:
                function()

    rounds = REPEATS // len(functions)
    profiler = cProfile.Profile()
    profiler.runcall(call_by_turns)
    times = [
        (entry.callcount == rounds, entry.inlinetime * 1e9 / REPEATS)
        for entry in profiler.getstats()
    ]
    return sum(time for _, time in times), sum(time for called, time in times if called)


def report(calibration):
    """Say what was measured, as lines of text."""
    calls = calibration["call_out"]
    yield "calibration, in ns"
    yield "  a call out, with 0 1 2 3 4 8 arguments     " + " ".join(
        f"{cost:.0f}" for cost in calls.values()
    )
    yield f'  a call in through extern "Python" *        {calibration["call_in"]:.0f}'
    yield f"  a queue record unpacked and dispatched *   {calibration['record']:.0f}"
    yield (
        f"  a copy of 1 byte, of 1 KiB                 {calibration['copy']:.0f}"
        f" {calibration['copy_1k']:.0f}"
    )
    if "profiler" in calibration:
        python, c = (sum(calibration["profiler"][kind]) for kind in ("python", "c"))
        yield f"  cProfile, for a call of Python, of C       {python:.0f} {c:.0f}"
    yield "  * to the object that it is for, whose own call is not counted"


if __name__ == "__main__":
    print(*report(calibrate()), sep="\n")
