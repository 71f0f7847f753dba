"""The names of callbacks: `Stats` names the longest, and the log names slow ones.

Names are looked for after a callback, and only if it has taken long. So they cost nothing else.
"""

from __future__ import annotations

from contextvars import Context
from functools import partial
from typing import Any

from pyasync._core.contexts import Bound
from pyasync._ffi import lib

#: The attributes that hold what a record calls, of the owner's options or of the owner itself.
_ATTRIBUTES = {
    lib.PA_READ: ("read_cb", "_read_cb"),
    lib.PA_READABLE: ("read_cb",),
    lib.PA_ACCEPTED: ("connect_cb",),
    lib.PA_CONNECTED: ("connect_cb",),
    lib.PA_EOF: ("event_cb",),
    lib.PA_READ_ERROR: ("event_cb", "_event_cb"),
    lib.PA_WRITE_ERROR: ("event_cb", "_event_cb"),
    lib.PA_ACCEPT_ERROR: ("event_cb",),
    lib.PA_BLOCKED: ("pressure_cb",),
    lib.PA_EXITED: ("_exit_cb",),
}


def record_callback(kind: int, owner: Any, of_request: Any) -> Any:
    """Return the function that a record has led to, or else its owner's class.

    A request forgets its callback when it calls it, so that one is given.
    """
    if kind == lib.PA_DONE:
        return of_request or type(owner)
    options = getattr(owner, "_options", None)
    for attribute in _ATTRIBUTES.get(kind, ("_callback",)):
        callback = getattr(options, attribute, None) or getattr(owner, attribute, None)
        if callback is not None:
            return callback
    return type(owner)


def name_of(callback: Any) -> str:
    """Return a function's module and qualified name, such as ``__main__.Chat.on_lines``."""
    while True:
        bound_to: Any = getattr(callback, "__self__", None)
        if isinstance(callback, partial):
            run = isinstance(getattr(callback.func, "__self__", None), Context)
            callback = callback.args[0] if run else callback.func
        elif type(bound_to).__module__.startswith("pyasync.") and hasattr(bound_to, "_callback"):
            callback = bound_to._callback  # of an interval or a notifier, which calls it
        elif getattr(callback, "__name__", None) == "_call_close_cb":
            callback = bound_to._options.close_cb  # of a stream, which calls it
        elif isinstance(callback, Bound):
            callback = callback.callback
        else:
            break
    named = callback if hasattr(callback, "__qualname__") else type(callback)
    module = getattr(named, "__module__", None)  # a method of a type in C and a coroutine have none
    return f"{module}.{named.__qualname__}" if module else str(named.__qualname__)
