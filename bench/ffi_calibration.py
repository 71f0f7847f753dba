"""What single crossings between Python and C cost here: the calibration of ffi_profile.py.

A small CFFI module with empty functions is compiled into build/ffi-calibration on first use, by
itself, so that the package carries nothing for the benchmarks. All figures are in nanoseconds,
each the lowest of several rounds: what disturbs a round only makes it slower.
"""

import cProfile
import hashlib
import importlib.util
import sys
from itertools import repeat
from pathlib import Path
from struct import Struct
from time import perf_counter_ns

from cffi import FFI

CACHE = Path(__file__).resolve().parent.parent / "build" / "ffi-calibration"
PYPY = sys.implementation.name == "pypy"

ROUNDS = 15
REPEATS = 20_000  # in a round
KIB = 1024
RECORD = Struct("iiqq")  # pa_event

# The arguments are of the types that pyasync passes most.
DECLARATIONS = """
void pa_empty0(void);
void pa_empty1(void *loop);
void pa_empty2(void *loop, int slot);
void pa_empty3(void *loop, int slot, int64_t value);
void pa_empty4(void *loop, int slot, int64_t value, const char *data);
void pa_empty8(void *loop, const int64_t *operations, int count, const char *payload, int slot,
               const char *data, size_t size, int callback);
void pa_call_in(int times);
"""
CALLBACK = "void pa_called(int slot, int64_t value, int64_t data);"
SOURCE = """
#include <stdint.h>
#include <stddef.h>
/* A compiler that sees through the functions would leave out the calls. */
#define EMPTY __attribute__((noinline)) static void
EMPTY pa_empty0(void) { __asm__ volatile(""); }
EMPTY pa_empty1(void *a) { (void) a; __asm__ volatile(""); }
EMPTY pa_empty2(void *a, int b) { (void) a; (void) b; __asm__ volatile(""); }
EMPTY pa_empty3(void *a, int b, int64_t c) {
  (void) a; (void) b; (void) c; __asm__ volatile("");
}
EMPTY pa_empty4(void *a, int b, int64_t c, const char *d) {
  (void) a; (void) b; (void) c; (void) d; __asm__ volatile("");
}
EMPTY pa_empty8(void *a, const int64_t *b, int c, const char *d, int e, const char *f, size_t g,
                int h) {
  (void) a; (void) b; (void) c; (void) d; (void) e; (void) f; (void) g; (void) h;
  __asm__ volatile("");
}
static void pa_called(int slot, int64_t value, int64_t data);
static void pa_call_in(int times) {
  for (int i = 0; i < times; i++)
    pa_called(i & 63, i, i);
}
"""


def load_module():
    """Compile the module, unless that was done before, and import it."""
    text = DECLARATIONS + CALLBACK + SOURCE + sys.version
    name = f"ffi_calibration_{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    found = [path for path in CACHE.glob(f"{name}.*") if path.suffix in (".so", ".dylib", ".pyd")]
    if found:
        path = found[0]
    else:
        builder = FFI()
        builder.cdef(DECLARATIONS + f'extern "Python" {CALLBACK}')
        builder.set_source(name, SOURCE, extra_compile_args=["-O2"])
        path = Path(builder.compile(tmpdir=str(CACHE)))
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def calibrate(progress=lambda text: None):
    """Measure everything. Returns nanoseconds by name, and by number of arguments for calls."""
    progress("compiling the calibration")
    module = load_module()
    progress("calibrating")
    ffi, lib = module.ffi, module.lib
    pointer, operations, data = ffi.new("char[8]"), ffi.new("int64_t[3]"), b"data"
    calls = {
        0: time_calls(loop_0, lib.pa_empty0),
        1: time_calls(loop_1, lib.pa_empty1, pointer),
        2: time_calls(loop_2, lib.pa_empty2, pointer, 1),
        3: time_calls(loop_3, lib.pa_empty3, pointer, 1, 2),
        4: time_calls(loop_4, lib.pa_empty4, pointer, 1, 2, data),
        8: time_calls(loop_8, lib.pa_empty8, pointer, operations, 1, data, 1, data, 4, 1),
    }
    result = {"call_out": calls}
    result["call_in"], result["record"] = calibrate_events(ffi, lib)
    result["copy"], result["copy_1k"] = (time_copies(ffi, size) for size in (1, KIB))
    if not PYPY:
        result["profiler"] = calibrate_profiler(lib.pa_empty0, calls[0])
    return result


def lowest(measure):
    return min(measure() for _ in range(ROUNDS))


def call_cost(calibration, arguments):
    """What a call out with so many arguments costs: measured, or between two that were."""
    calls = calibration["call_out"]
    if arguments in calls:
        return calls[arguments]
    few = max(count for count in calls if count <= min(arguments, 4))
    many = max(calls)
    return calls[few] + (calls[many] - calls[few]) / (many - few) * (arguments - few)


def time_calls(loop, *arguments):
    """Return what one call in a loop costs more than the loop."""

    def calls():
        started = perf_counter_ns()
        loop(*arguments)
        return (perf_counter_ns() - started) / REPEATS

    def nothing():
        started = perf_counter_ns()
        for _ in repeat(None, REPEATS):
            pass
        return (perf_counter_ns() - started) / REPEATS

    return max(0.0, lowest(calls) - lowest(nothing))


# One for each number of arguments: a call with * would cost more.


def loop_0(call):
    for _ in repeat(None, REPEATS):
        call()


def loop_1(call, a):
    for _ in repeat(None, REPEATS):
        call(a)


def loop_2(call, a, b):
    for _ in repeat(None, REPEATS):
        call(a, b)


def loop_3(call, a, b, c):
    for _ in repeat(None, REPEATS):
        call(a, b, c)


def loop_4(call, a, b, c, d):
    for _ in repeat(None, REPEATS):
        call(a, b, c, d)


def loop_8(call, a, b, c, d, e, f, g, h):
    for _ in repeat(None, REPEATS):
        call(a, b, c, d, e, f, g, h)


class Target:
    """What a record, or a call in, is for."""

    __slots__ = ()

    def on_event(self, value, data):
        pass


def calibrate_events(ffi, lib):
    """How an event comes from C to the object that it is for, without what the call there costs.

    Returns the cost of a call in, and of a record of a queue, unpacked and dispatched.
    """
    objects = [Target() for _ in range(64)]

    @ffi.def_extern()
    def pa_called(slot, value, data):
        objects[slot].on_event(value, data)

    def call_in():
        started = perf_counter_ns()
        lib.pa_call_in(REPEATS)
        return (perf_counter_ns() - started) / REPEATS

    def call_only():
        target, value = objects[0], 0
        started = perf_counter_ns()
        for _ in repeat(None, REPEATS):
            target.on_event(value, value)
        return (perf_counter_ns() - started) / REPEATS

    def walk_records():
        started = perf_counter_ns()
        for kind, slot, value, data in RECORD.iter_unpack(records):
            if kind == 1:
                pass
            elif kind == 4:
                objects[slot].on_event(value, data)
        return (perf_counter_ns() - started) / REPEATS

    records = memoryview(b"".join(RECORD.pack(4, i & 63, i, i) for i in range(REPEATS)))
    call = lowest(call_only)
    return max(0.0, lowest(call_in) - call), max(0.0, lowest(walk_records) - call)


def time_copies(ffi, size):
    """Return what one copy out of C's memory costs, as a read makes it."""
    arena = ffi.buffer(ffi.new("char[]", 64 * KIB))
    starts = [(i * 64, i * 64 + size) for i in range(REPEATS // 40)] * 40

    def copies():
        started = perf_counter_ns()
        for start, end in starts:
            arena[start:end]
        return (perf_counter_ns() - started) / REPEATS

    def nothing():
        started = perf_counter_ns()
        for start, end in starts:  # noqa: B007
            pass
        return (perf_counter_ns() - started) / REPEATS

    return max(0.0, lowest(copies) - lowest(nothing))


def calibrate_profiler(empty_call, call_cost):
    """What cProfile adds to one call: to the caller's own time, and to the callee's.

    Returns these two by kind, for functions in Python and in C.
    """

    def empty_function():
        pass

    result = {}
    for kind, functions, one, inside in (
        ("python", [eval("lambda: None") for _ in range(40)], empty_function, 0.0),
        ("c", [getattr(owner, name) for owner, names in SOME_IN_C for name in names.split()],
         empty_call, call_cost),
    ):  # fmt: skip
        # The profiler's clock is read next to the call: within its own time there is little else.
        in_callee = lowest(lambda one=one: profile([one] * 40, one)) - inside
        # It looks each function up in a tree: as many of them as a program calls by turns.
        plain = lowest(lambda functions=functions: time_rounds(functions))
        profiled = lowest(lambda functions=functions: profile(functions))
        in_callee = max(0.0, in_callee)
        result[kind] = (max(0.0, profiled - plain - in_callee), in_callee)
    return result


SOME_IN_C = [
    ([], "copy clear reverse __len__ __sizeof__ sort"),
    ({}, "copy clear keys values items __len__"),
    ("a", "lower isalpha isdigit isupper __len__ strip split"),
    (b"a", "lower isalpha isdigit isupper __len__ strip split hex"),
    (set(), "copy clear __len__ __sizeof__"),
    (1, "bit_length conjugate __bool__ __float__ __index__ __neg__"),
    (1.0, "hex is_integer __bool__"),
]


def call_by_turns(functions):
    for _ in repeat(None, REPEATS // 40):
        for function in functions:
            function()


def time_rounds(functions):
    started = perf_counter_ns()
    call_by_turns(functions)
    return (perf_counter_ns() - started) / (REPEATS // 40 * len(functions))


def profile(functions, one=None):
    """Return the time that a profiled call adds to all own times; or to that of `one`'s alone."""
    profiler = cProfile.Profile()
    profiler.runcall(call_by_turns, functions)
    profiler.create_stats()
    calls = REPEATS // 40 * len(functions)
    return sum(
        own_time * 1e9 / calls
        for (_, _, name), (_, count, own_time, _, _) in profiler.stats.items()
        if one is None or (count == calls)
    )


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
