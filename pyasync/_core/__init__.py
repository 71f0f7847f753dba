"""The core that the callback API stands on, and any other API can: no callbacks, no policy.

It imports itself, `pyasync._ffi`, `pyasync.errors` and `pyasync.counters`, and nothing else of the
package: a test keeps it so.
"""
