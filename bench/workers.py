"""Worker processes that report over pipes, for the servers and the clients of the benchmarks."""

import json
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import time

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Workers:
    """One forked process for each of `targets`, running `target(send)`.

    `send(kind, value)` reports to the parent. Each process leads a process group of its own, so
    that a Ctrl-C at the terminal reaches only the parent, which forwards it. A worker whose
    parent is gone ends at its next report.

    The workers must be made before an event loop: a loop does not survive a fork.
    """

    def __init__(self, targets):
        context = multiprocessing.get_context("fork")
        self._processes = {}  # by the pipe that each reports on
        for target in targets:
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(target=self._run, args=(target, receiver, sender))
            process.start()
            sender.close()  # so that the pipe ends when the worker does
            self._processes[receiver] = process

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

    def messages(self):
        """Yield `(pid, kind, value)` as the reports come, until the last worker has ended.

        The last message of each is `(pid, "ended", outcome)`: None, or in words how it failed.
        """
        while self._processes:
            for receiver in multiprocessing.connection.wait(list(self._processes)):
                process = self._processes[receiver]
                try:
                    kind, value = receiver.recv()
                except (EOFError, OSError):  # OSError: it died in the middle of a message
                    del self._processes[receiver]  # first: a reaped process gets no signals
                    receiver.close()
                    process.join()
                    kind, value = "ended", describe_exit(process.exitcode)
                yield process.pid, kind, value

    def send_signal(self, signo):
        """Send a signal to every worker that has not ended."""
        for process in self._processes.values():
            os.kill(process.pid, signo)


def describe_exit(status):
    """Say how a process failed, after its name; None if it did not."""
    if status < 0:
        return f"was ended by {signal.Signals(-status).name}"
    return f"ended with exit status {status}" if status else None


class Reports:
    """The latest report of each of several processes, and their sum."""

    def __init__(self, processes, zero):
        self._running = processes
        self._latest = {}
        self._zero = zero
        self._since_round = 0

    def add(self, pid, report):
        """Take a report. Returns whether it completes a round: as many as there are processes."""
        self._latest[pid] = report
        self._since_round += 1
        if self._since_round < self._running:
            return False
        self._since_round = 0
        return True

    def ended(self):
        """Expect no more reports of one process; those that it has made count on."""
        self._running -= 1

    def total(self):
        return sum(self._latest.values(), self._zero)


class Console(Reports):
    """Prints what all the processes report, as one: as text, or a JSON object a line."""

    def __init__(self, processes, zero, *, as_json, in_place=False):
        super().__init__(processes, zero)
        self._as_json = as_json
        self._in_place = in_place  # whether a line of progress replaces the one before
        self._count, self._time = 0, time.monotonic()  # at the last line of progress

    def print(self, event, text, *, progress=False, **fields):
        """Print a text with these fields in it, or the fields."""
        text = json.dumps({"event": event, **fields}) if self._as_json else text.format(**fields)
        if self._in_place:
            text = "\r\x1b[K" + text
        print(text, end="" if progress and self._in_place else "\n", flush=True)

    def rate(self, count):
        """How many there were a second since this was asked before."""
        now = time.monotonic()
        rate = (count - self._count) / (now - self._time)
        self._count, self._time = count, now
        return rate

    def worker_ended(self, name, outcome):
        """Expect nothing more of one process; say how it died, if it did."""
        self.ended()
        if outcome:
            print(f"{name} {outcome}", file=sys.stderr, flush=True)
