"""The one place that imports the extension module."""

import os

try:
    from pyasync._libuv import ffi, lib
except ModuleNotFoundError as error:
    if error.name != "pyasync._libuv":  # a module that the extension itself imports is missing
        raise
    _folder = os.path.dirname(os.path.abspath(__file__))
    raise ImportError(
        f"{_folder} has no extension (pyasync._libuv) that was built for this Python. It is a "
        "source tree in which nothing is built; it may hide a pyasync that is installed, because "
        "Python looks in the current folder first. Either build it in place, with "
        f"`pip install -e .` in {os.path.dirname(_folder)}, or use the installed one: run from "
        "another folder, or with `python -I` (since Python 3.11 also with `python -P`)."
    ) from None

__all__ = ["ffi", "lib"]
