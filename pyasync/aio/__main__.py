"""Runs any asyncio program, unchanged, on pyasync's event loop.

    python -m pyasync.aio program.py [argument ...]
    python -m pyasync.aio -m module [argument ...]

The program gets pyasync's loop wherever asyncio makes a new one: by `asyncio.run`, a Runner, or
`asyncio.new_event_loop`. A program that names a loop of its own (uvloop, a loop_factory) gets that.
"""

from __future__ import annotations

import importlib.util
import os
import runpy
import sys

from pyasync.aio.runners import install


def main() -> None:
    words = sys.argv[1:]
    if not words or words[0] in ("-h", "--help") or words == ["-m"]:
        print(__doc__.rstrip())
        sys.exit(0 if words and words != ["-m"] else 2)
    install()
    if words[0] == "-m" and not _is_module(words[1]):
        sys.exit(f"pyasync.aio: there is no module {words[1]}")
    if words[0] != "-m" and not os.path.exists(words[0]):
        sys.exit(f"pyasync.aio: there is no file {words[0]}")
    if words[0] == "-m":
        sys.argv = words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = words
        # As Python does for a script: modules beside it can be imported.
        sys.path[0] = os.path.dirname(os.path.abspath(words[0]))
        runpy.run_path(words[0], run_name="__main__")


def _is_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):  # of a package before it; the name is empty
        return False


if __name__ == "__main__":
    main()
