"""Callbacks that run in a context of `contextvars`: they are wrapped where they are given.

So a callback without a context costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import Context
from functools import partial
from typing import Any

from pyasync._core.arguments import require_instance


def optional_context(context: Any) -> None:
    """Raise `TypeError` unless the argument ``context`` is a `contextvars.Context` or None."""
    if context is not None:
        require_instance("context", context, Context)


def in_context(context: Context | None, callback: Any) -> Any:
    """Return a function that calls the callback in the context itself; None: the callback."""
    return callback if context is None or callback is None else partial(context.run, callback)


class Binder:
    """Lets the callbacks of a socket run in a copy of a context, the same one for all of them."""

    __slots__ = ("entered", "run")

    def __init__(self, context: Context) -> None:
        self.run = context.copy().run
        self.entered = False

    def bind(self, callback: Any) -> Any:
        """Return a function that calls the callback in the copy; None: None."""
        return None if callback is None else Bound(self, callback)


class Bound:
    """A callback that runs in the context of its socket."""

    __slots__ = ("_binder", "callback")

    def __init__(self, binder: Binder, callback: Callable[..., Any]) -> None:
        self._binder = binder
        self.callback = callback

    def __call__(self, *arguments: Any) -> Any:
        binder = self._binder
        # A context cannot be entered twice, and pressure_cb may run in a call of another callback.
        if binder.entered:
            return self.callback(*arguments)
        binder.entered = True
        try:
            return binder.run(self.callback, *arguments)
        finally:
            binder.entered = False


def unbound(callback: Any) -> Any:
    """Return the callback that the application gave, of one that `Binder.bind` has made of it."""
    return callback.callback if isinstance(callback, Bound) else callback
