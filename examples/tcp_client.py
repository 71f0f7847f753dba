"""A TCP client: sends a text, or its standard input, and prints what the server answers.

    python examples/tcp_client.py example.org 13
    python examples/tcp_client.py 127.0.0.1 7000 hello
    python examples/tcp_client.py 127.0.0.1 7000 < some-file

At the end of its input it tells the server so (half-close), and waits for the rest of the answer.
It ends when the server closes the connection. The exit status is 1 after an error.

SIGINT (Ctrl-C) and SIGTERM end it.
"""

import argparse
import os
import signal
import sys
import threading

import pyasync

CONNECT_TIMEOUT = 10  # seconds
CHUNK = 64 << 10  # bytes of standard input to read at a time


class Client:
    """One connection, and the thread that reads standard input for it."""

    def __init__(self, host, port, text):
        self.failed = False
        self.loop = pyasync.current_loop()
        self.may_read = threading.Event()
        self.socket = pyasync.tcp_connect(
            host,
            port,
            self.on_data,
            event_cb=self.on_event,
            connect_timeout=CONNECT_TIMEOUT,
        )
        if text is None:
            threading.Thread(target=self.read_input, daemon=True).start()
        else:
            self.socket.write(text + "\n")
            self.socket.shutdown()

    # In a thread, as reading standard input may block for ever

    def read_input(self):
        while True:
            data = os.read(sys.stdin.fileno(), CHUNK)
            self.may_read.clear()
            try:
                self.loop.call_threadsafe(lambda data=data: self.send(data))
            except pyasync.EventLoopNotRunning:
                return
            if not data:
                return
            self.may_read.wait()  # until that has been sent

    # In the loop

    def send(self, data):
        if self.socket.closed:
            return
        if data:
            self.socket.write(data, write_cb=lambda socket: self.may_read.set())
        else:
            self.socket.shutdown()

    def on_data(self, socket, data):
        try:
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()
        except BrokenPipeError:
            # As `| head` does. The descriptor must not break the flush at exit, too:
            # https://docs.python.org/3/library/signal.html#note-on-sigpipe
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            socket.close()

    def on_event(self, event):
        if isinstance(event, pyasync.EventError):
            self.failed = True
            print("error:", event, file=sys.stderr)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("host", help="host to connect to: a name or an address")
    parser.add_argument("port", type=int, help="port to connect to")
    parser.add_argument("text", nargs="?", help="a line to send, in place of standard input")
    options = parser.parse_args()

    with pyasync.event_loop():
        for signo in (signal.SIGINT, signal.SIGTERM):
            handler = pyasync.signal_handler(signo, lambda signo: pyasync.exit_event_loop())
            handler.unref()  # the connection alone keeps the loop running
        try:
            client = Client(options.host, options.port, options.text)
        except (OSError, ValueError) as error:
            sys.exit(f"cannot connect: {error}")
    sys.exit(1 if client.failed else 0)


if __name__ == "__main__":
    main()
