"""What single crossings between Python and C cost here: the calibration of ffi_profile.py.

A small CFFI module with empty functions is compiled into build/ffi-calibration on first use, by
itself, so that the package carries nothing for the benchmarks. All figures are in nanoseconds,
each the lowest of several rounds: what disturbs a round only makes it slower.
"""

import cProfile
import hashlib
import importlib
import sys
from struct import Struct
from timeit import Timer

from cffi import FFI
from common import BENCH, KIB

CACHE = BENCH.parent / "build" / "ffi-calibration"
PYPY = sys.implementation.name == "pypy"

ROUNDS = 15
REPEATS = 20_000  # in a round
RECORD = Struct("iiqq")  # pa_event

# The first so many arguments of a call, of the types that pyasync passes most.
TYPES = ["void *loop", "int slot", "int64_t value", "const char *data", "const int64_t *words",
         "const char *payload", "size_t size", "int callback", "int flags"]  # fmt: skip
COUNTS = range(len(TYPES) + 1)
# Functions to profile: as many as a program calls by turns, which the profiler looks up in a tree.
BY_TURNS = range(40)
EMPTY = [f"pa_empty{count}({', '.join(TYPES[:count]) or 'void'})" for count in COUNTS]
EMPTY += [f"pa_by_turns{i}(void)" for i in BY_TURNS]
CALLBACK = "void pa_called(int slot, int64_t value, int64_t data);"
DECLARATIONS = f'extern "Python" {CALLBACK} void pa_call_in(int times);'
DECLARATIONS += "".join(f"void {function};" for function in EMPTY)
# A compiler that sees through the functions would leave out the calls.
SOURCE = f"""
#include <stdint.h>
#include <stddef.h>
static {CALLBACK}
static void pa_call_in(int times) {{
  for (int i = 0; i < times; i++)
    pa_called(i & 63, i, i);
}}
""" + "\n".join(f'__attribute__((noinline)) static void {f} {{ __asm__(""); }}' for f in EMPTY)


def load_module():
    """Compile the module, unless that was done before, and import it."""
    text = DECLARATIONS + SOURCE + sys.version
    name = f"ffi_calibration_{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    sys.path.append(str(CACHE))
    try:
        return importlib.import_module(name)
    except ImportError:
        builder = FFI()
        builder.cdef(DECLARATIONS)
        builder.set_source(name, SOURCE, extra_compile_args=["-O2"])
        builder.compile(tmpdir=str(CACHE))
        importlib.invalidate_caches()
        return importlib.import_module(name)


def calibrate():
    """Measure everything. Returns nanoseconds by name, and by number of arguments for calls."""
    module = load_module()
    ffi, lib = module.ffi, module.lib
    values = [ffi.new("char[8]"), 1, 2, b"data", ffi.new("int64_t[3]"), b"data", 4, 1, 0]
    calls = {count: call_time(getattr(lib, f"pa_empty{count}"), values[:count]) for count in COUNTS}
    call_in, record = event_times(ffi, lib)
    found = {"call_out": calls, "call_in": call_in, "record": record}
    found.update(copy=copy_time(ffi, 1), copy_1k=copy_time(ffi, KIB))
    if not PYPY:
        found["profiler"] = {
            "python": profiler_times([eval("lambda: None") for _ in BY_TURNS], 0.0),
            "c": profiler_times([getattr(lib, f"pa_by_turns{i}") for i in BY_TURNS], calls[0]),
        }
    return found


def time_each(statement, *, but_for="pass", at_once=1, **names):
    """What a statement costs more than another that does as many at once, for each of them.

    Both run in a loop, and the names are local there.
    """
    setup = "\n".join(f"{name} = given[{name!r}]" for name in names)
    whole, rest = (
        min(timer.repeat(ROUNDS, REPEATS // at_once))
        for timer in (Timer(text, setup, globals={"given": names}) for text in (statement, but_for))
    )
    return max(0.0, whole - rest) * 1e9 / REPEATS


def call_time(call, arguments):
    names = {f"argument{i}": value for i, value in enumerate(arguments)}
    return time_each(f"call({', '.join(names)})", call=call, **names)


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


def event_times(ffi, lib):
    """How an event comes from C to the object that it is for, without what the call there costs.

    Returns the cost of a call in, and of a record of a queue, unpacked and dispatched.
    """
    objects = [Target() for _ in range(64)]

    @ffi.def_extern()
    def pa_called(slot, value, data):
        objects[slot].on_event(value, data)

    records = memoryview(b"".join(RECORD.pack(4, i & 63, i, i) for i in range(REPEATS)))
    names = {"unpack": RECORD.iter_unpack, "records": records, "objects": objects}
    call = time_each("target.on_event(0, 0)", target=objects[0])
    call_in = time_each("call_in(times)", at_once=REPEATS, call_in=lib.pa_call_in, times=REPEATS)
    record = time_each(WALK_RECORDS, at_once=REPEATS, **names)
    return max(0.0, call_in - call), max(0.0, record - call)


def copy_time(ffi, size):
    """Return what one copy out of C's memory costs, as a read makes it."""
    arena = ffi.buffer(ffi.new("char[]", 64 * KIB))
    starts = [(i * 64, i * 64 + size) for i in range(500)]
    each = "for start, end in starts: "
    return time_each(
        f"{each} arena[start:end]", but_for=f"{each} pass", at_once=500, arena=arena, starts=starts
    )


def profiler_times(functions, inside):
    """What cProfile adds to a call of these: to the caller's own time, and to the callee's.

    `inside` is what the callee's own time is without it.
    """

    def call_by_turns():
        for _ in range(rounds):
            for function in functions:
                function()

    rounds = REPEATS // len(functions)
    plain = time_each("for call in functions: call()", at_once=len(functions), functions=functions)
    of_all, of_callees = [], []
    for _ in range(ROUNDS):
        profiler = cProfile.Profile()
        profiler.runcall(call_by_turns)
        own = [(entry.callcount, entry.inlinetime * 1e9 / REPEATS) for entry in profiler.getstats()]
        of_all.append(sum(time for _, time in own))
        of_callees.append(sum(time for calls, time in own if calls == rounds))
    in_callee = max(0.0, min(of_callees) - inside)
    return max(0.0, min(of_all) - plain - in_callee), in_callee
