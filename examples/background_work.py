"""Hashes files in threads, as sha256sum(1) does, while the loop goes on.

    python examples/background_work.py --workers 4 README.md examples/*.py

Each file is `work` for a thread; a notifier, which all threads trigger, shows with --progress how
many bytes have been hashed. SIGINT (Ctrl-C) cancels what has not begun.
"""

import argparse
import hashlib
import signal
import sys
from functools import partial

import pyasync

BLOCK = 1 << 20


class Progress:
    """Counts bytes in the threads, and shows them in the loop."""

    def __init__(self):
        self.sizes = {}  # by file: each is written by one thread
        self.notifier = pyasync.make_notifier(self.show, single_shot=False)
        self.notifier.unref()  # the work keeps the loop running

    def add(self, path, size):
        self.sizes[path] = self.sizes.get(path, 0) + size
        # Cheap: the triggers that come before the loop has shown anything are one.
        self.notifier.trigger()

    def show(self):
        print(f"{sum(list(self.sizes.values())):,} bytes", file=sys.stderr)


def hash_file(path, progress):
    """Run in a thread: blocks as it likes."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
            if progress is not None:
                progress.add(path, len(block))
    return digest.hexdigest()


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workers", type=int, default=4, help="threads (%(default)s)")
    parser.add_argument("--progress", action="store_true", help="show how far it is")
    parser.add_argument("file", nargs="+")
    options = parser.parse_args()
    if not 1 <= options.workers <= 1024:
        parser.error("--workers must be from 1 to 1,024")
    status = 0

    def on_hash(path, digest):
        print(f"{digest}  {path}", flush=True)

    def on_error(path, error):
        nonlocal status
        status = 1
        print(f"{path}: {error}", file=sys.stderr)

    def stop(signo):
        nonlocal status
        status = 128 + signo
        print("stopped", file=sys.stderr, flush=True)
        pyasync.exit_event_loop()

    with pyasync.event_loop():
        # Not referenced: the loop ends with the last of the work.
        pyasync.signal_handler(signal.SIGINT, stop).unref()
        pyasync.set_max_workers(options.workers)
        progress = Progress() if options.progress else None
        for path in options.file:
            pyasync.work(
                partial(hash_file, path, progress),
                partial(on_hash, path),
                event_cb=partial(on_error, path),
            )
    sys.exit(status)


if __name__ == "__main__":
    main()
