"""Prints what changes in directories or files, until SIGINT (Ctrl-C) or SIGTERM.

    python examples/watch.py src README.md

Each line has what has changed and its path: "appeared" and "gone" if it was made, deleted or
renamed, and "changed" for its contents or attributes. What is below a directory's entries is not
watched.
"""

import argparse
import os
import signal
import sys

import pyasync


def on_change(monitor, filename, renamed, changed):
    # The entry of a directory, or what is watched itself.
    path = os.path.join(monitor.path, filename)
    if filename == os.path.basename(monitor.path) and not os.path.lexists(path):
        path = monitor.path
    if renamed:
        print("appeared" if os.path.lexists(path) else "gone", path, flush=True)
    elif changed:
        print("changed", path, flush=True)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("path", nargs="+")
    options = parser.parse_args()

    def stop(signo):
        pyasync.clear_signal_handlers()
        for monitor in monitors:
            pyasync.fs_unwatch(monitor)

    def on_error(error):
        print(f"not watched any more: {error}", file=sys.stderr)

    monitors = []
    with pyasync.event_loop():
        for path in options.path:
            try:
                monitors.append(pyasync.fs_watch(path, on_change, event_cb=on_error))
            except pyasync.FilesystemError as error:
                sys.exit(str(error))
        for signo in (signal.SIGINT, signal.SIGTERM):
            pyasync.signal_handler(signo, stop).unref()
        print("watching", *options.path, flush=True)


if __name__ == "__main__":
    main()
