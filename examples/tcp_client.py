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

import pyasync

CONNECT_TIMEOUT = 10  # seconds
CHUNK = 64 << 10  # bytes to read at a time from what is no stream
STANDARD_INPUT = 0  # not sys.stdin, whose buffer would keep data from the stream


class Client:
    """One connection, and the standard input that is sent over it."""

    def __init__(self, host, port, text):
        self.failed = False
        self.input = None
        self.socket = pyasync.tcp_connect(
            host,
            port,
            self.on_data,
            event_cb=self.on_event,
            pressure_cb=self.on_pressure,
            close_cb=self.on_close,
            connect_timeout=CONNECT_TIMEOUT,
        )
        if text is None:
            self.open_input(STANDARD_INPUT)
        else:
            self.socket.write(text + "\n")
            self.socket.shutdown()

    # The input

    def open_input(self, fd):
        try:
            self.input = pyasync.open_stream(fd, self.on_input, event_cb=self.on_input_event)
        except ValueError:  # a file: nothing has to be waited for there
            self.read_file(fd)

    def on_input(self, stream, data):
        if not self.socket.closed:
            self.socket.write(data)

    def on_input_event(self, event):
        self.on_event(event)
        if not self.socket.closed:
            self.socket.shutdown()

    def on_pressure(self, socket, paused):
        if self.input is not None and not self.input.closed:
            if paused:
                self.input.disable(read=True)
            else:
                self.input.enable(read=True)

    def read_file(self, fd):
        pyasync.fs.read(
            fd, CHUNK, lambda data: self.on_block(fd, data), event_cb=self.on_input_event
        )

    def on_block(self, fd, data):
        if self.socket.closed:
            return
        if data:
            self.socket.write(data, write_cb=lambda socket: self.read_file(fd))
        else:
            self.socket.shutdown()

    # The connection

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

    def on_close(self, socket, error):
        if self.input is not None:
            self.input.close()


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
