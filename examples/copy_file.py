"""Copies a file, without the loop ever waiting for a disk.

    python examples/copy_file.py from.iso to.iso

SIGINT (Ctrl-C) leaves the copy as it is.
"""

import argparse
import os
import sys

import pyasync
from pyasync import fs

#: Bytes that one operation copies: between two of them the loop may do other things.
CHUNK = 16 << 20


class Copy:
    def __init__(self, source, target):
        self.source, self.target = source, target
        self.descriptors = []
        self.offset = 0
        self.error = None
        fs.open(source, os.O_RDONLY, self.on_source, event_cb=self.fail)

    def on_source(self, fd):
        self.descriptors.append(fd)
        fs.fstat(fd, self.on_status, event_cb=self.fail)

    def on_status(self, status):
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL  # never over another file
        mode = status.st_mode & 0o777
        fs.open(self.target, flags, self.on_target, mode=mode, event_cb=self.fail)

    def on_target(self, fd):
        self.descriptors.append(fd)
        self.copy()

    def copy(self):
        source, target = self.descriptors
        fs.sendfile(target, source, self.offset, CHUNK, self.on_copied, event_cb=self.fail)

    def on_copied(self, size):
        self.offset += size
        if size:
            self.copy()
        else:
            self.end()

    def fail(self, error):
        self.error = error
        if len(self.descriptors) == 2:  # the target is ours, and half a copy is worth nothing
            fs.unlink(self.target, lambda: None, event_cb=self.on_close_failed)
        self.end()

    def end(self):
        for fd in self.descriptors:
            fs.close(fd, lambda: None, event_cb=self.on_close_failed)
        self.descriptors.clear()

    def on_close_failed(self, error):  # a disk may say only now that it is full
        self.error = self.error or error


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", help="the file to copy")
    parser.add_argument("target", help="its copy, which must not be there yet")
    options = parser.parse_args()

    try:
        with pyasync.event_loop():
            copy = Copy(options.source, options.target)
    except KeyboardInterrupt:
        sys.exit("stopped")
    if copy.error is not None:
        sys.exit(f"cannot copy {options.source}: {copy.error}")
    print(f"copied {copy.offset} bytes")


if __name__ == "__main__":
    main()
