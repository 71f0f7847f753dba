"""Worker processes that report over pipes, for the servers and the clients of the benchmarks."""

import json
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import time

import common

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Workers:
    """One forked process for each of `targets`, running `target(send)`.

    `send(kind, value)` reports to the parent; what comes as "counters" can be added to `zero`.
    Each process leads a process group of its own, so that a Ctrl-C at the terminal reaches only
    the parent, which forwards it. A worker whose parent is gone ends at its next report.

    The workers must be made before an event loop: a loop does not survive a fork.
    """

    def __init__(self, targets=(), zero=None):
        self._zero = zero
        self._latest = {}  # counters by process id
        self._processes = {}  # by the pipe that each reports on
        for target in targets:
            self.add(target)

    def add(self, target):
        """Start one more. Returns its process id."""
        context = multiprocessing.get_context("fork")
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=self._run, args=(target, receiver, sender))
        process.start()
        sender.close()  # so that the pipe ends when the worker does
        self._processes[receiver] = process
        return process.pid

    def _run(self, target, receiver, sender):
        os.setpgid(0, 0)
        for inherited in (receiver, *self._processes):
            inherited.close()

        def send(kind, value):
            try:
                sender.send((kind, value))
            except BrokenPipeError:  # nobody is left to hear why this process ends, either
                os._exit(1)

        target(send)

    def messages(self, seconds=None):
        """Yield `(pid, kind, value)` as the reports come, until the last worker has ended.

        Or for so many seconds. The value of "counters" is the total of all workers when each has
        reported, and None until then. The last message of each is `(pid, "ended", outcome)`: None,
        or in words how it failed.
        """
        reported = 0
        deadline = None if seconds is None else time.monotonic() + seconds
        while self._processes:
            left = deadline and max(0, deadline - time.monotonic())
            ready = multiprocessing.connection.wait(list(self._processes), left)
            if not ready:
                return
            for receiver in ready:
                process = self._processes[receiver]
                try:
                    kind, value = receiver.recv()
                except (EOFError, OSError):  # OSError: it died in the middle of a message
                    del self._processes[receiver]  # first: a reaped process gets no signals
                    receiver.close()
                    process.join()
                    kind, value = "ended", describe_exit(process.exitcode)
                if kind == "counters":
                    self._latest[process.pid] = value
                    reported += 1
                    value = None
                    if reported >= len(self._processes):
                        reported, value = 0, self.total()
                yield process.pid, kind, value

    def total(self):
        """The sum of the latest counters of all workers, also of those that have ended."""
        return sum(self._latest.values(), self._zero)

    def send_signal(self, signo, pid=None):
        """Send a signal to every worker that has not ended, or to this one."""
        for process in self._processes.values():
            if pid in (None, process.pid):
                os.kill(process.pid, signo)


def describe_exit(status):
    """Say how a process failed, after its name; None if it did not."""
    if status < 0:
        return f"was ended by {signal.Signals(-status).name}"
    return f"ended with exit status {status}" if status else None


class Console:
    """Prints what happens: as text, or a JSON object a line."""

    def __init__(self, *, as_json, in_place=False):
        self._as_json = as_json
        self._in_place = in_place  # whether a line of progress replaces the one before
        self._count, self._time = 0, time.monotonic()  # at the last line of progress

    def print(self, event, text, *, progress=False, **fields):
        """Print a text with these fields in it, or the fields."""
        text = json.dumps({"event": event, **fields}) if self._as_json else text.format(**fields)
        if progress and self._in_place:
            common.progress(text)
        else:
            common.say(text, file=sys.stdout)

    def rate(self, count):
        """How many there were a second since this was asked before."""
        now = time.monotonic()
        rate = (count - self._count) / (now - self._time)
        self._count, self._time = count, now
        return rate
