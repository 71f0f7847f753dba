"""The one place that imports the extension module."""

from pyasync._libuv import ffi, lib

__all__ = ["ffi", "lib"]
