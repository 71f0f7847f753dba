"""The core under the callback API, and under any other API: no callbacks, no policy.

It imports itself, `pyasync._ffi`, `pyasync.errors` and `pyasync.counters`, and nothing else of the
package. A test reads the imports.
"""
