"""An echo server over UDP (RFC 862): sends each datagram back to where it came from.

    python examples/udp_echo.py --port 7000
    python examples/udp_echo.py --port 7000 --send hello

With --send it is the client: it sends the text, again each second, and prints the answer. SIGINT
(Ctrl-C) and SIGTERM end both.
"""

import argparse
import signal
import sys

import pyasync

#: How often, in seconds, the client sends its text, and how many times: datagrams get lost.
RESEND = 1.0
TRIES = 5


def serve(host, port):
    def echo(socket, data, address):
        # Small services of other systems answer any datagram, ours too. With a forged address two
        # such would talk for ever (CERT CA-1996-01).
        if address[1] >= 1024:
            socket.send(data, address)

    def on_error(error):
        # It does not end the socket: an answer could not be sent.
        print("error:", error, file=sys.stderr)

    server = pyasync.udp_socket(host, port, echo, event_cb=on_error)
    print("listening at {} port {}".format(*server.address[:2]), flush=True)


def ask(host, port, text):
    def on_answer(socket, data, address):
        print(data.decode(errors="replace"))
        timer.close()
        socket.close()

    def send():
        nonlocal left
        if left == 0:
            sys.exit("no answer")
        left -= 1
        client.send(text)

    def on_error(error):
        sys.exit(f"error: {error}")

    left = TRIES
    client = pyasync.udp_socket("::" if ":" in host else "0.0.0.0", 0, on_answer, event_cb=on_error)
    client.connect(host, port)
    timer = pyasync.interval(send, time=RESEND)
    send()


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--host", default="127.0.0.1", help="the server's address (%(default)s)")
    parser.add_argument(
        "--port", type=int, default=7000, help="port; 0: any that is free (%(default)s)"
    )
    parser.add_argument("--send", metavar="TEXT", help="be the client, and send this")
    options = parser.parse_args()

    with pyasync.event_loop():
        for signo in (signal.SIGINT, signal.SIGTERM):
            handler = pyasync.signal_handler(signo, lambda signo: pyasync.exit_event_loop())
            handler.unref()  # the client ends when its socket is closed
        try:
            if options.send is None:
                serve(options.host, options.port)
            else:
                ask(options.host, options.port, options.send)
        except (OSError, ValueError) as error:
            sys.exit(f"cannot open the socket: {error}")


if __name__ == "__main__":
    main()
