"""The clock of timers, in seconds.

It is libuv's, as libuv wakes the loop. On macOS that goes on while the machine sleeps, and Python's
`time.monotonic` does not. Elsewhere the two are the same clock (CLOCK_MONOTONIC), and Python's
costs less.
"""

from __future__ import annotations

import sys

from pyasync._ffi import lib

if sys.platform == "darwin":

    def monotonic() -> float:
        """Return libuv's time in seconds."""
        nanoseconds: int = lib.uv_hrtime()
        return nanoseconds / 1e9

else:
    from time import monotonic

__all__ = ["monotonic"]
