"""Runs several commands at once, and puts their names before the lines that they print.

    python examples/run_all.py 'web=python -m http.server 8000' 'clock=while sleep 1; do date; done'
    python examples/run_all.py --procfile Procfile

Each command is run by sh. A Procfile has a line `name: command` for each. The program ends when
the last command has; its exit status is that of the first that failed, or 0.

SIGINT (Ctrl-C) and SIGTERM are passed on to the commands as SIGTERM; a second one ends them for
sure, as those are that take longer than the grace time.
"""

import argparse
import functools
import os
import re
import signal
import sys

import pyasync


class Runner:
    def __init__(self, commands, grace):
        self.commands = commands
        self.grace = grace
        self.running = []
        self.status = 0
        self.stopping = False
        self.width = max(map(len, commands))

    def start(self):
        pyasync.add_event_loop_exit_callback(lambda: self.kill_all(signal.SIGKILL))
        for signo in (signal.SIGINT, signal.SIGTERM):
            pyasync.signal_handler(signo, self.on_signal).unref()
        for name, command in self.commands.items():
            output = pyasync.StdioStream(read_cb=functools.partial(self.on_output, name))
            process = pyasync.spawn(
                "sh",
                ["-c", command],
                exit_cb=functools.partial(self.on_exit, name),
                event_cb=functools.partial(self.on_event, name),
                output=output,
                error_output=output,
                # In a session of its own, so that Ctrl-C does not reach it beside us, and that
                # what it starts can be ended together with it.
                detached=True,
            )
            self.running.append(process)
            self.say(name, f"started, pid {process.pid}")

    def say(self, name, text):
        self.show(name, b"* " + text.encode())

    def show(self, name, line):
        sys.stdout.buffer.write(f"{name:<{self.width}} | ".encode() + line + b"\n")
        sys.stdout.buffer.flush()

    def on_output(self, name, pipe, stream):
        for line in stream:  # the whole ones, and at the end what is left
            self.show(name, line.rstrip(b"\r\n"))

    def on_event(self, name, event):
        if isinstance(event, pyasync.EventError):
            self.say(name, f"error: {event}")

    def on_exit(self, name, process, exit_status, term_signal):
        self.running.remove(process)
        if term_signal:
            self.say(name, f"ended by {signal.Signals(term_signal).name}")
            exit_status = 128 + term_signal  # as a shell says it
        else:
            self.say(name, f"exited with status {exit_status}")
        if not self.stopping:
            self.status = self.status or exit_status

    def on_signal(self, signo):
        self.kill_all(signal.SIGKILL if self.stopping else signal.SIGTERM)
        if not self.stopping:
            self.stopping = True
            pyasync.delay(lambda: self.kill_all(signal.SIGKILL), time=self.grace).unref()

    def kill_all(self, signo):
        for process in self.running:
            if process.kill(0):  # is there still: then its pid, and so the group's, is too
                os.killpg(process.pid, signo)


def read_procfile(path):
    with open(path, encoding="utf-8") as file:
        lines = [line.strip() for line in file]
    return [line for line in lines if line and not line.startswith("#")]


def parse(lines, separator):
    commands = {}
    for line in lines:
        found = re.fullmatch(rf"([\w-]+){separator}(.+)", line)
        if not found or found[1] in commands:
            sys.exit(f"no name and command, or a name that was there already: {line!r}")
        commands[found[1]] = found[2]
    return commands


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("commands", nargs="*", metavar="name=command", help="what to run")
    parser.add_argument("--procfile", help="file to take commands from as well")
    parser.add_argument(
        "--grace", type=float, default=5.0, help="seconds until a SIGKILL (%(default)s)"
    )
    options = parser.parse_args()
    if not 0 <= options.grace < 1e6:
        parser.error("--grace must be from 0 to 1,000,000 seconds")
    try:
        lines = read_procfile(options.procfile) if options.procfile else []
    except (OSError, UnicodeDecodeError) as error:
        sys.exit(f"cannot read the Procfile: {error}")
    commands = {**parse(lines, r"\s*:\s*"), **parse(options.commands, "=")}
    if not commands:
        parser.error("nothing to run")

    runner = Runner(commands, options.grace)
    try:
        pyasync.start_event_loop(runner.start)
    except BrokenPipeError:  # nobody reads what we print, such as `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    sys.exit(runner.status)


if __name__ == "__main__":
    main()
