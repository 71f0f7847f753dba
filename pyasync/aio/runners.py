"""Making and running loops: what `asyncio.run` and its policies are to asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from pyasync.aio.loop import EventLoop
from pyasync.aio.versions import default_policy, set_policy

T = TypeVar("T")


def new_event_loop() -> EventLoop:
    """Return a new loop: for ``asyncio.run(main(), loop_factory=pyasync.aio.new_event_loop)``."""
    return EventLoop()


def run(main: Coroutine[Any, Any, T], *, debug: bool | None = None) -> T:
    """Run the coroutine in a new loop, and close the loop; all else is as of `asyncio.run`.

    Raises what ``main`` raises; `ValueError` if it is no coroutine, and `RuntimeError` if a loop
    runs in this thread.
    """
    if hasattr(asyncio, "Runner"):
        with asyncio.Runner(debug=debug, loop_factory=new_event_loop) as runner:
            return runner.run(main)
    # Before 3.11 asyncio.run has no other way to get a loop than the policy.
    policy = asyncio.get_event_loop_policy()
    set_policy(EventLoopPolicy())
    try:
        return asyncio.run(main, debug=debug)
    finally:
        set_policy(policy)


class EventLoopPolicy(default_policy()):
    """asyncio's policy, but that new loops are pyasync's: for programs before Python 3.12."""

    _loop_factory = EventLoop


def install() -> None:
    """Let all loops that this process makes be pyasync's, by `asyncio.set_event_loop_policy`.

    asyncio deprecates policies: since Python 3.12 use `run`, or a ``loop_factory``.
    """
    set_policy(EventLoopPolicy())
