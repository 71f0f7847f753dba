"""What a signal handler does, at each line of some functions in turn."""

import contextlib
import linecache
import sys

try:
    from pypyjit import set_param
except ImportError:  # not PyPy

    def set_param(text):
        pass


class Interrupt(Exception):
    """What the handler raises."""


@contextlib.contextmanager
def at_line(number, act, *functions):
    """Call ``act()`` before the ``number``-th line that runs in one of the functions.

    As a signal handler does, it runs between two steps of the interpreter; what it raises comes out
    of that line. Gives a list, which has an item when it was called.
    """
    codes = {function.__code__ for function in functions}
    left, called = number, []

    def trace(frame, event, arg):
        return trace_line if frame.f_code in codes else None

    def trace_line(frame, event, arg):
        nonlocal left
        if event == "line" and not called and not looks_for_no_signal(frame):
            if left == 0:
                called.append(frame.f_lineno)
                sys.settrace(None)
                act()
            left -= 1
        return trace_line

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield called
    finally:
        sys.settrace(before)


def looks_for_no_signal(frame):
    """Whether CPython looks for no signal at this line: "try:", "break", or a with statement.

    The 3.11 exception table has no entry for an outer try statement alone, nor for a break that
    ends an except clause: an exception there would leave the handled one in sys.exc_info() for
    good. A with statement is a line also at its end, where the exit is called: what comes there
    comes after the exit.
    """
    line = linecache.getline(frame.f_code.co_filename, frame.f_lineno).strip()
    return line in ("try:", "break") or line.startswith("with ")


def each_line(scenario, act, *functions, most=10_000, step=1):
    """Run ``scenario()`` again and again, with ``act()`` at the first line, the second, and on.

    With a step only at some lines, of which the same ones run many times.
    """
    set_param("off")  # each trace function makes PyPy compile all again, which takes minutes
    try:
        for number in range(0, most, step):
            with at_line(number, act, *functions) as called:
                scenario()
            # PyPy 8 leaves one behind at a `raise` that ends an except clause.
            if sys.implementation.name == "cpython":
                assert sys.exc_info()[1] is None, f"line {called} leaves its exception behind"
            if not called:
                assert number > 0, "none of these functions has run"
                return number
    finally:
        set_param("default")
    raise AssertionError(f"more than {most} lines")


def raise_interrupt():
    raise Interrupt
