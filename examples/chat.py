"""A chat server: each line that somebody sends goes to all the others.

    python examples/chat.py --port 7002
    nc 127.0.0.1 7002

The first line that a client sends is its name. Who sends lines of more than 4 KiB is thrown out;
so is who does not read: when more than 256 KiB wait for a client, it is dropped, and the others are
told. Nobody waits for the slowest.

SIGTERM ends it when its clients have been told, or after five seconds. SIGINT (Ctrl-C) ends it at
once.
"""

import argparse
import signal
import sys

import pyasync

LINE_LIMIT = 4 << 10  # bytes
QUEUE_LIMIT = 256 << 10  # bytes
NAME_LIMIT = 20  # characters
GRACE = 5.0  # seconds that clients have to take what waits for them, at SIGTERM


class Chat:
    """The room, with those in it. `data` of a socket is its name, None until it has one."""

    def __init__(self):
        self.members = {}  # sockets by name
        self.server = None

    def listen(self, host, port):
        self.server = pyasync.tcp_server(
            host,
            port,
            self.on_lines,
            stream=True,
            connect_cb=self.on_connect,
            event_cb=self.on_event,
            pressure_cb=self.on_pressure,
        )

    # What the loop calls

    def on_connect(self, socket):
        socket.set_watermarks(QUEUE_LIMIT)
        socket.write("What is your name?\n")

    def on_lines(self, socket, stream):
        for line in stream:  # those that are there as a whole
            if len(line) > LINE_LIMIT:
                self.drop(socket, "sent too long a line")
                return
            self.say(socket, printable(line))
        if stream.buffered > LINE_LIMIT:
            self.drop(socket, "sent too long a line")

    def on_event(self, event):
        if isinstance(event, pyasync.SocketAcceptError):
            print("error:", event, file=sys.stderr)
        elif isinstance(event, pyasync.SocketEOF):
            self.leave(event.socket, "has left")
        else:
            self.leave(event.socket, f"is gone: {event}")

    def on_pressure(self, socket, paused):
        if paused:
            self.drop(socket, "was too slow")

    # What happens in the room

    def say(self, socket, text):
        if socket.data is None:
            self.join(socket, text)
        elif text:
            self.tell_others(socket, f"{socket.data}: {text}")

    def join(self, socket, name):
        if not 0 < len(name) <= NAME_LIMIT:
            socket.write(f"A name has 1 to {NAME_LIMIT} characters. What is yours?\n")
        elif name in self.members:
            socket.write("That name is taken. What is yours?\n")
        else:
            socket.write(f"Here are: {', '.join(self.members) or 'only you'}\n")
            socket.data = name
            self.members[name] = socket
            self.tell_others(socket, f"* {name} has joined")

    def leave(self, socket, why):
        name, socket.data = socket.data, None
        if name is not None:
            del self.members[name]
            self.tell_others(socket, f"* {name} {why}")

    def drop(self, socket, why):
        socket.close(force=True)
        self.leave(socket, why)

    def tell_others(self, speaker, text):
        line = f"{text}\n".encode()
        for socket in self.members.values():
            if socket is not speaker:
                socket.write(line)

    def end(self):
        self.members = {}
        for socket in self.server.connections:
            socket.data = None  # its end, which may still be an error, is announced to nobody
            socket.write("* the server ends\n")
            socket.close()  # sends that first
        self.server.shutdown(GRACE, lambda server: pyasync.exit_event_loop())


def printable(line):
    """Return the line as text, without what would act on the terminal that shows it."""
    return "".join(filter(str.isprintable, line.decode(errors="replace"))).strip()


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (%(default)s)")
    parser.add_argument(
        "--port", type=int, default=7002, help="port; 0: any that is free (%(default)s)"
    )
    options = parser.parse_args()

    with pyasync.event_loop():
        chat = Chat()
        pyasync.signal_handler(signal.SIGINT, lambda signo: pyasync.exit_event_loop())
        pyasync.signal_handler(signal.SIGTERM, lambda signo: chat.end())
        try:
            chat.listen(options.host, options.port)
        except (OSError, ValueError) as error:
            sys.exit(f"cannot listen: {error}")
        host, port = chat.server.address[:2]
        print(f"listening at {host} port {port}", flush=True)


if __name__ == "__main__":
    main()
